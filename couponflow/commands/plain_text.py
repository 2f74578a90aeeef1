"""Printing what others wrote: as it is, with nothing in it taken for markup."""

from rich.text import Text

from couponflow.commands.support import out


def print_plain(text: str) -> None:
    """Print the text whole; a line is as long as it is."""
    out.print(text, markup=False, highlight=False, soft_wrap=True)


def print_below(text: str) -> None:
    """Print a remark on the line above, cut to the width of the terminal."""
    remark = Text(f"  {text}")
    remark.truncate(out.width, overflow="ellipsis")
    print_plain(remark.plain)


def escaped(text: str) -> str:
    """The text for where markup is read, as in a table."""
    return text.replace("[", r"\[")
