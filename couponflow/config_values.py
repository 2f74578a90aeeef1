"""One value against its type: converted, or told in words what would be right."""

import difflib
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import msgspec


def convert(kind: object, value: object, *, strict: bool) -> object | None:
    """The value as that type, or None if it is not one; `strict` takes no number from text."""
    try:
        # A variable whose bytes are not UTF-8 arrives as text that cannot be encoded again.
        str(value).encode()
        converted: object = msgspec.convert(value, kind, strict=strict)
    except (msgspec.ValidationError, UnicodeEncodeError):
        return None
    if isinstance(converted, float) and not math.isfinite(converted):
        return None
    return converted


def expectation(kind: object) -> str:
    """What the type admits, in words."""
    match msgspec.inspect.type_info(kind):
        case msgspec.inspect.IntType(ge=low, le=high):
            return f"a whole number{_bounds(low, high)}"
        case msgspec.inspect.FloatType(gt=limit) if limit is not None:
            return f"a number above {limit}"
        case msgspec.inspect.FloatType(ge=low, le=high):
            return f"a number{_bounds(low, high)}"
        case msgspec.inspect.LiteralType(values=values):
            return "one of " + ", ".join(str(value) for value in values)
        case msgspec.inspect.VarTupleType():
            return "a list of texts"
        case msgspec.inspect.DictType():
            return "tables by name, as config/couponflow.toml shows them"
        case _:
            return "a text"


@dataclass(frozen=True, slots=True)
class TableProblem:
    """One thing that is wrong with a table; `field` is empty where it is none."""

    table: str
    field: str
    problem: str
    example: object = ""
    """A right value of the field, empty where there is none to show."""


def row_of(kind: object) -> type[msgspec.Struct] | None:
    """What each table is, where the type is tables by name; else None."""
    match msgspec.inspect.type_info(kind):
        case msgspec.inspect.DictType(value_type=msgspec.inspect.StructType(cls=row)):
            return row
        case _:
            return None


def read_tables(
    row: type[msgspec.Struct],
    tables: Mapping[str, object],
    examples: Mapping[str, object],
    *,
    strict: bool,
) -> tuple[dict[str, object], list[TableProblem]]:
    """The tables that are right, and what is wrong with the others, which is all told at once.

    `examples` has values for fields whose default is nothing. No problem holds a value that was
    found: any may be a secret, or have got into the wrong field.
    """
    right: dict[str, object] = {}
    problems: list[TableProblem] = []
    for name, table in tables.items():
        found = list(_problems_of(row, name, table, examples, strict=strict))
        problems += found
        converted = None if found else convert(row, table, strict=strict)
        if converted is not None:
            right[name] = converted
    return right, problems


def _problems_of(
    row: type[msgspec.Struct],
    name: str,
    table: object,
    examples: Mapping[str, object],
    *,
    strict: bool,
) -> Iterator[TableProblem]:
    fields = {field.name: field for field in msgspec.structs.fields(row)}
    if not isinstance(table, dict):
        needed = " and ".join(field.name for field in fields.values() if field.required)
        yield TableProblem(name, "", f"must be a table with {needed}")
        return
    for unknown in (str(key) for key in table if key not in fields):
        close = closest(unknown, fields)
        meant = f": did you mean {close}?" if close else f"; there are: {', '.join(fields)}"
        yield TableProblem(name, unknown, f"is unknown{meant}")
    for field in fields.values():
        nothing = field.default in (msgspec.NODEFAULT, ())
        example = examples.get(field.name, "" if nothing else field.default)
        if field.name in table:
            if convert(field.type, table[field.name], strict=strict) is None:
                problem = f"must be {expectation(field.type)}"
                yield TableProblem(name, field.name, problem, example)
        elif field.required:
            yield TableProblem(name, field.name, "is missing", example)


def closest(word: str, candidates: Iterable[str]) -> str:
    """The candidate most like the word; empty where none is much like it."""
    return next(iter(difflib.get_close_matches(word, list(candidates), n=1)), "")


def plain(value: object) -> str:
    """A value as a variable holds it."""
    return ",".join(map(str, value)) if isinstance(value, tuple | list) else str(value)


def literal(value: object) -> str:
    """A value as the file holds it, cut short when it is long."""
    match value:
        case dict():
            return "a section"
        case bool():
            return str(value).lower()
        case list() | tuple():
            text = f"[{', '.join(map(literal, value))}]"
        case str():
            text = repr(value)
        case _:
            text = str(value)
    return text if len(text) <= 80 else f"{text[:80]}..."


def _bounds(low: float | None, high: float | None) -> str:
    if low is not None and high is not None:
        return f" from {low} to {high}"
    if low is not None:
        return f" of at least {low}"
    return "" if high is None else f" of at most {high}"
