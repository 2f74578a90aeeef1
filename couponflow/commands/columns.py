"""Rows as aligned columns of plain text: a table that never cuts or wraps what is in it."""

from collections.abc import Sequence


def aligned(
    headings: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: Sequence[str], gap: int = 2
) -> list[str]:
    """The headings and then each row as a line; the columns in `numbers` are flush right."""
    every = [headings, *rows]
    widths = [max(map(len, column)) for column in zip(*every, strict=True)]
    right = [heading in numbers for heading in headings]
    return [
        (" " * gap)
        .join(
            cell.rjust(width) if flush else cell.ljust(width)
            for cell, width, flush in zip(row, widths, right, strict=True)
        )
        .rstrip()
        for row in every
    ]
