"""The header of a CSV file held against the columns an import needs."""

from collections.abc import Callable, Sequence
from difflib import get_close_matches
from operator import itemgetter

from couponflow.catalogue.csv_records import CsvRecord
from couponflow.catalogue.errors import ImportRefused
from couponflow.catalogue.fields import shown

REJECT_COLUMNS = ("line", "reason")
"""What a rejects file has more; ignored on import, so that a mended one is a file to import."""


def match_columns(
    header: CsvRecord | None, columns: tuple[str, ...]
) -> Callable[[Sequence[str]], Sequence[str]]:
    """A function that brings a record's fields into the order of `columns`.

    The header may have them in any order and case. Raises `ImportRefused` with everything that is
    wrong with it.
    """
    wanted = f"a header line is needed: {','.join(columns)}"
    if header is None:
        raise ImportRefused(f"the file is empty; {wanted}")
    if header.problem is not None:
        raise ImportRefused(f"line {header.line}: {header.problem}; {wanted}")
    names = [name.strip().lower() for name in header.fields]
    if problems := _header_problems(names, columns):
        raise ImportRefused(f"the header does not fit: {'; '.join(problems)}. {wanted}")
    return itemgetter(*(names.index(column) for column in columns))


def _header_problems(names: list[str], columns: tuple[str, ...]) -> list[str]:
    if len(names) == 1 and any(separator in names[0] for separator in ";\t|"):
        return ["columns must be separated by commas"]
    missing = [column for column in columns if column not in names]
    problems = []
    for name in dict.fromkeys(names):
        if names.count(name) > 1:
            problems.append(f"column {shown(name)} is there {names.count(name)} times")
        if name not in columns and name not in REJECT_COLUMNS:
            close = get_close_matches(name, missing, n=1, cutoff=0.5)
            hint = f", did you mean {close[0]}?" if close else ""
            problems.append(f"unknown column {shown(name)}{hint}")
    problems.extend(f"column {column} is missing" for column in missing)
    return problems
