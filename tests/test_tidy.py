"""House rules that no linter knows, held against the tree and against examples of each breach.

A rule is a function from source files to complaints; a complaint begins with the place and says
why the rule is there and what to do instead.
"""

import ast
import functools
import itertools
import re
import subprocess
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).parents[1]
KINDS = {".py", ".sql", ".md", ".toml"}

MAX_LINES = {"couponflow": 400, "tests": 500, "bench": 500}
MAX_FUNCTION_LINES = 70

# The brackets keep these patterns from finding themselves.
LEFTOVER = re.compile(r"\b(?:TOD[O]|FIXM[E]|XX[X])\b")
MACHINE_PATH = re.compile(r"(?<![\w.})])/(?:roo[t]|hom[e])/")
QUERY_NAME = re.compile(r"^-- name: *(\w+)", re.MULTILINE)
MIGRATION = re.compile(r"(\d{4})_[a-z0-9_]+\.sql")
RELEASE = re.compile(r"^## \[?(?:Unreleased|v?\d+\.\d+)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file of the repository; `path` is relative to its root."""

    path: str
    text: str

    @property
    def folder(self) -> str:
        """The top folder it is in, or nothing."""
        return self.path.partition("/")[0] if "/" in self.path else ""

    @property
    def is_python(self) -> bool:
        return self.path.endswith(".py")


Rule = Callable[[Sequence[SourceFile]], Iterator[str]]


@functools.cache
def source_files() -> tuple[SourceFile, ...]:
    """What is in git or would be with the next `git add`."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True).stdout.decode()
    return tuple(
        SourceFile(name, (ROOT / name).read_text(encoding="utf-8"))
        for name in sorted(set(filter(None, listed.split("\0"))))
        if PurePosixPath(name).suffix in KINDS and (ROOT / name).is_file()
    )


@functools.cache
def parsed(file: SourceFile) -> ast.Module:
    return ast.parse(file.text, file.path)


def python_nodes(files: Iterable[SourceFile]) -> Iterator[tuple[SourceFile, ast.AST]]:
    for file in files:
        if file.is_python:
            for node in ast.walk(parsed(file)):
                yield file, node


@functools.cache
def imported_names(file: SourceFile) -> Mapping[str, str]:
    """What each imported name stands for: `from time import sleep as nap` is nap -> time.sleep."""
    names = {builtin: builtin for builtin in ("print", "Exception", "BaseException")}
    for node in ast.walk(parsed(file)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                top = alias.name.partition(".")[0]
                names[alias.asname or top] = alias.name if alias.asname else top
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            for alias in node.names:
                names[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    return names


def full_name(file: SourceFile, node: ast.AST | None) -> str:
    """The dotted name of an imported thing, such as `time.sleep`; empty for anything else."""
    match node:
        case ast.Name(id=name):
            return imported_names(file).get(name, "")
        case ast.Attribute(value=value, attr=name):
            owner = full_name(file, value)
            return f"{owner}.{name}" if owner else ""
        case _:
            return ""


def line_of(text: str, offset: int) -> int:
    return text.count("\n", 0, offset) + 1


# Rules


def files_are_short(files: Sequence[SourceFile]) -> Iterator[str]:
    for file in files:
        limit = MAX_LINES.get(file.folder)
        lines = len(file.text.splitlines())
        if file.is_python and limit is not None and lines > limit:
            yield f"{file.path}: {lines} lines, more than {limit}: it holds two ideas, make it two"


def functions_fit_on_a_screen(files: Sequence[SourceFile]) -> Iterator[str]:
    for file, node in python_nodes(files):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if lines > MAX_FUNCTION_LINES:
                yield (
                    f"{file.path}:{node.lineno}: {node.name} has {lines} lines, more than "
                    f"{MAX_FUNCTION_LINES}: give its steps names of their own"
                )


def banned(
    files: Sequence[SourceFile], names: set[str], why: str, allowed: Callable[[str], bool]
) -> Iterator[str]:
    """Complain of every mention, since a banned function handed on is called as well."""
    for file, node in python_nodes(files):
        if isinstance(node, ast.Name | ast.Attribute) and not allowed(file.path):
            name = full_name(file, node)
            if name in names:
                yield f"{file.path}:{node.lineno}: {name}: {why}"


def tasks_have_an_owner(files: Sequence[SourceFile]) -> Iterator[str]:
    why = "nobody waits for such a task or hears of its error: use an anyio task group"
    names = {"asyncio.create_task", "asyncio.ensure_future"}
    return banned(files, names, why, allowed=lambda path: False)


def nobody_blocks_the_event_loop(files: Sequence[SourceFile]) -> Iterator[str]:
    why = "it stops every role of the process: await anyio.sleep, in tests await the condition"
    return banned(
        files,
        {"time.sleep"},
        why,
        allowed=lambda path: not path.startswith(("couponflow/", "tests/")),
    )


def time_is_passed_in(files: Sequence[SourceFile]) -> Iterator[str]:
    why = "a test cannot set it: take a Clock (couponflow/kernel/clock.py) and ask its now()"
    names = {"time.time", "time.time_ns", "datetime.datetime.now", "datetime.datetime.utcnow"}
    return banned(files, names, why, allowed=lambda path: path == "couponflow/kernel/clock.py")


def only_the_command_line_prints(files: Sequence[SourceFile]) -> Iterator[str]:
    why = "nobody reads a daemon's standard output: log an event with structlog"
    is_cli = re.compile(r"couponflow/(?:cli\w*\.py|cli/.*|__main__\.py)").fullmatch
    return banned(
        files,
        {"print"},
        why,
        allowed=lambda path: not path.startswith("couponflow/") or is_cli(path) is not None,
    )


def waits_are_for_conditions(files: Sequence[SourceFile]) -> Iterator[str]:
    """Also finds `start_soon(anyio.sleep, 1)`: a sleep followed by how long."""
    for file, node in python_nodes(files):
        if isinstance(node, ast.Call) and file.folder == "tests":
            named = [keyword.value for keyword in node.keywords if keyword.arg == "delay"]
            values = [node.func, *node.args, *named]
            for function, argument in itertools.pairwise(values):
                slept = full_name(file, function) in {"asyncio.sleep", "anyio.sleep"}
                if slept and is_nonzero_number(argument):
                    yield (
                        f"{file.path}:{node.lineno}: a fixed sleep is too short on a slow machine "
                        "and too long on a fast one: await an Event, wait_all_tasks_blocked(), or "
                        "poll the condition under fail_after, every POLL_SECONDS"
                    )


def is_nonzero_number(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, int | float) and node.value > 0


def failures_are_heard(files: Sequence[SourceFile]) -> Iterator[str]:
    for file, node in python_nodes(files):
        match node:
            case ast.ExceptHandler(type=caught, body=body):
                swallowed = all(does_nothing(line) for line in body)
                silent = swallowed and (caught is None or catches_everything(file, caught))
            case ast.Call(func=function, args=arguments):
                suppressed = full_name(file, function) == "contextlib.suppress"
                silent = suppressed and any(catches_everything(file, each) for each in arguments)
            case _:
                continue
        if silent:
            yield (
                f"{file.path}:{node.lineno}: every error is swallowed, mistakes in the code too: "
                "name the errors that are expected, and log what is not"
            )


def does_nothing(statement: ast.stmt) -> bool:
    match statement:
        case ast.Pass() | ast.Expr(value=ast.Constant()):
            return True
        case _:
            return False


def catches_everything(file: SourceFile, caught: ast.expr) -> bool:
    kinds = caught.elts if isinstance(caught, ast.Tuple) else [caught]
    names = {full_name(file, kind).removeprefix("builtins.") for kind in kinds}
    return not names.isdisjoint({"Exception", "BaseException"})


def nothing_is_left_over(files: Sequence[SourceFile]) -> Iterator[str]:
    for file in files:
        for found in LEFTOVER.finditer(file.text):
            line = line_of(file.text, found.start())
            yield f"{file.path}:{line}: {found[0]}: do it now, or write an issue that says why not"


def no_path_is_of_one_machine(files: Sequence[SourceFile]) -> Iterator[str]:
    for file in files:
        for found in MACHINE_PATH.finditer(file.text):
            line = line_of(file.text, found.start())
            yield f"{file.path}:{line}: {found[0]} exists on one machine only: use a relative path"


def modules_say_what_they_are_for(files: Sequence[SourceFile]) -> Iterator[str]:
    for file in files:
        exempt = PurePosixPath(file.path).name in {"__init__.py", "__main__.py"}
        bound = file.is_python and file.folder == "couponflow" and not exempt
        if bound and not ast.get_docstring(parsed(file)):
            yield f"{file.path}: no docstring: begin with one sentence that says its idea"


def queries_are_used(files: Sequence[SourceFile]) -> Iterator[str]:
    used = [mentioned for file in files for mentioned in mentioned_texts(file)]
    for file in files:
        if file.path.startswith("sql/queries/"):
            for found in QUERY_NAME.finditer(file.text):
                if not any(re.fullmatch(pattern, found[1]) for pattern in used):
                    line = line_of(file.text, found.start())
                    yield f"{file.path}:{line}: {found[1]} is used nowhere: use it or delete it"


@functools.cache
def mentioned_texts(file: SourceFile) -> frozenset[str]:
    """The texts in a module of couponflow, as patterns: f"take_{kind}" may be any take_..."""
    if not (file.is_python and file.folder == "couponflow"):
        return frozenset()
    patterns = set()
    for node in ast.walk(parsed(file)):
        parts = node.values if isinstance(node, ast.JoinedStr) else [node]
        texts = [part.value if isinstance(part, ast.Constant) else None for part in parts]
        if "".join(text for text in texts if isinstance(text, str)).isidentifier():
            patterns.add("".join(text if isinstance(text, str) else r"\w+" for text in texts))
    return frozenset(patterns)


def queries_have_an_owner(files: Sequence[SourceFile]) -> Iterator[str]:
    paths = {file.path for file in files}
    for path in sorted(paths):
        if path.startswith("sql/queries/"):
            name = PurePosixPath(path).stem
            owners = {f"couponflow/{name}/__init__.py", f"couponflow/kernel/{name}.py"}
            if owners.isdisjoint(paths):
                yield f"{path}: neither a folder couponflow/{name} nor a kernel module {name}.py"


def migrations_are_numbered(files: Sequence[SourceFile]) -> Iterator[str]:
    names = [
        path.name
        for path in map(PurePosixPath, sorted(file.path for file in files))
        if path.parent == PurePosixPath("sql/migrations")
    ]
    expected = 1
    for name in names:
        numbered = MIGRATION.fullmatch(name)
        if numbered is None:
            yield f"sql/migrations/{name}: must be called NNNN_what_it_does.sql, in lower case"
        elif int(numbered[1]) != expected:
            yield f"sql/migrations/{name}: number {expected:04} should come here"
        expected = int(numbered[1]) + 1 if numbered else expected


def changes_are_written_down(files: Sequence[SourceFile]) -> Iterator[str]:
    texts = [file.text for file in files if file.path == "CHANGELOG.md"]
    if not any(RELEASE.search(text) for text in texts):
        yield "CHANGELOG.md: no heading `## Unreleased` and none of a version, as `## 1.2.0`"


# The tree


def hold(rule: Rule) -> None:
    complaints = list(rule(source_files()))
    assert not complaints, "\n" + "\n".join(complaints)


def test_files_are_short() -> None:
    hold(files_are_short)


def test_functions_fit_on_a_screen() -> None:
    hold(functions_fit_on_a_screen)


def test_tasks_have_an_owner() -> None:
    hold(tasks_have_an_owner)


def test_nobody_blocks_the_event_loop() -> None:
    hold(nobody_blocks_the_event_loop)


def test_time_is_passed_in() -> None:
    hold(time_is_passed_in)


def test_only_the_command_line_prints() -> None:
    hold(only_the_command_line_prints)


def test_waits_are_for_conditions() -> None:
    hold(waits_are_for_conditions)


def test_failures_are_heard() -> None:
    hold(failures_are_heard)


def test_nothing_is_left_over() -> None:
    hold(nothing_is_left_over)


def test_no_path_is_of_one_machine() -> None:
    hold(no_path_is_of_one_machine)


def test_modules_say_what_they_are_for() -> None:
    hold(modules_say_what_they_are_for)


def test_queries_are_used() -> None:
    hold(queries_are_used)


def test_queries_have_an_owner() -> None:
    hold(queries_have_an_owner)


def test_migrations_are_numbered() -> None:
    hold(migrations_are_numbered)


def test_changes_are_written_down() -> None:
    hold(changes_are_written_down)


def test_the_tree_that_is_checked_is_the_whole_tree() -> None:
    paths = {file.path for file in source_files()}

    assert paths >= {"tests/test_tidy.py", "couponflow/config.py", "pyproject.toml", "README.md"}
    assert "sql/migrations/0001_catalogue.sql" in paths
    assert "uv.lock" not in paths


# The rules themselves

PYTHON = "couponflow/redirect/x.py"
TEST = "tests/test_x.py"
CLOCK = "couponflow/kernel/clock.py"

BREACHES: list[tuple[Rule, str, str]] = [
    (files_are_short, PYTHON, "pass\n" * 401),
    (files_are_short, TEST, "pass\n" * 501),
    (functions_fit_on_a_screen, TEST, "async def f():\n" + "    pass\n" * 70),
    (tasks_have_an_owner, TEST, "import asyncio\nasyncio.create_task(f())"),
    (tasks_have_an_owner, PYTHON, "from asyncio import create_task as go\ngo(f())"),
    (nobody_blocks_the_event_loop, PYTHON, "import time as t\nt.sleep(0)"),
    (nobody_blocks_the_event_loop, TEST, "def f():\n    from time import sleep\n    sleep(1)"),
    (nobody_blocks_the_event_loop, TEST, "import time\nrun_sync(time.sleep, 1)"),
    (time_is_passed_in, TEST, "import time\nfield(default_factory=time.time)"),
    (time_is_passed_in, PYTHON, "import datetime\ndatetime.datetime.now(tz=zone)"),
    (time_is_passed_in, PYTHON, "from datetime import datetime as d\nd.utcnow()"),
    (only_the_command_line_prints, PYTHON, "print(1)"),
    (only_the_command_line_prints, "couponflow/redirect/cli.py", "print(1)"),
    (waits_are_for_conditions, TEST, "import anyio\nawait anyio.sleep(0.01)"),
    (waits_are_for_conditions, TEST, "from asyncio import sleep\nawait sleep(delay=1)"),
    (waits_are_for_conditions, TEST, "import anyio\ngroup.start_soon(anyio.sleep, 1)"),
    (failures_are_heard, PYTHON, "try:\n    f()\nexcept Exception:\n    pass"),
    (failures_are_heard, PYTHON, "try:\n    f()\nexcept (OSError, BaseException) as e:\n    ..."),
    (failures_are_heard, TEST, "try:\n    f()\nexcept:\n    pass"),
    (failures_are_heard, PYTHON, "import contextlib as c\nwith c.suppress(Exception):\n    f()"),
    (nothing_is_left_over, "README.md", "one\n\nTOD" + "O: two"),
    (nothing_is_left_over, "sql/queries/clicks.sql", "-- FIXM" + "E"),
    (no_path_is_of_one_machine, "README.md", "see `/hom" + "e/me/x`"),
    (no_path_is_of_one_machine, "pyproject.toml", 'a = "/roo' + 't/x"'),
    (modules_say_what_they_are_for, PYTHON, "x = 1"),
    (queries_are_used, "sql/queries/clicks.sql", "-- name: lonely\nselect 1;"),
    (queries_have_an_owner, "sql/queries/clicks.sql", ""),
    (migrations_are_numbered, "sql/migrations/0002_gap.sql", ""),
    (migrations_are_numbered, "sql/migrations/0001-dash.sql", ""),
    (migrations_are_numbered, "sql/migrations/001_short.sql", ""),
    (changes_are_written_down, "CHANGELOG.md", "# Changes\n## Someday\n"),
]

OBSERVANCES: list[tuple[Rule, str, str]] = [
    (files_are_short, PYTHON, "pass\n" * 400),
    (files_are_short, "sql/queries/clicks.sql", "\n" * 900),
    (functions_fit_on_a_screen, TEST, "def f():\n" + "    pass\n" * 69),
    (tasks_have_an_owner, PYTHON, "group.create_task(f())"),
    (nobody_blocks_the_event_loop, "bench/x.py", "import time\ntime.sleep(1)"),
    (nobody_blocks_the_event_loop, PYTHON, "import anyio\nawait anyio.sleep(1)"),
    (time_is_passed_in, CLOCK, "import time\ntime.time()"),
    (time_is_passed_in, PYTHON, "import time\ntime.monotonic()\nclock.now()"),
    (only_the_command_line_prints, "couponflow/cli.py", "print(1)"),
    (only_the_command_line_prints, "couponflow/cli_import.py", "print(1)"),
    (only_the_command_line_prints, TEST, "print(1)"),
    (waits_are_for_conditions, TEST, "import anyio\nawait anyio.sleep(0)"),
    (waits_are_for_conditions, TEST, "import anyio\nawait anyio.sleep(seconds)"),
    (waits_are_for_conditions, PYTHON, "import anyio\nawait anyio.sleep(1)"),
    (failures_are_heard, PYTHON, "try:\n    f()\nexcept OSError:\n    pass"),
    (failures_are_heard, PYTHON, "try:\n    f()\nexcept Exception:\n    log()\n    pass"),
    (nothing_is_left_over, PYTHON, "mkstemp('XXXXXX')"),
    (no_path_is_of_one_machine, "README.md", "https://shop.example/hom" + "e/x and ./roo" + "t/"),
    (modules_say_what_they_are_for, "couponflow/redirect/__init__.py", ""),
    (changes_are_written_down, "CHANGELOG.md", "# Changes\n\n## 0.1.0 - 2026-11-20\n"),
    (changes_are_written_down, "CHANGELOG.md", "## Unreleased\n"),
]


@pytest.mark.parametrize(("rule", "path", "text"), BREACHES)
def test_a_breach_is_found_once_and_placed(rule: Rule, path: str, text: str) -> None:
    (complaint,) = rule([SourceFile(path, text)])

    assert complaint.startswith(f"{path}:")


@pytest.mark.parametrize(("rule", "path", "text"), OBSERVANCES)
def test_what_keeps_a_rule_is_left_alone(rule: Rule, path: str, text: str) -> None:
    assert list(rule([SourceFile(path, text)])) == []


def test_a_query_may_be_named_in_full_or_by_its_pattern() -> None:
    sql = "".join(f"-- name: {name}\nselect 1;\n" for name in ("find", "take_offers", "take"))
    code = 'queries["find"]\nqueries[f"take_{kind}"]\n'
    files = [SourceFile("sql/queries/clicks.sql", sql), SourceFile(PYTHON, code)]

    assert list(queries_are_used(files)) == [
        "sql/queries/clicks.sql:5: take is used nowhere: use it or delete it"
    ]


def test_a_query_mentioned_in_a_test_alone_is_not_used() -> None:
    files = [
        SourceFile("sql/queries/clicks.sql", "-- name: find\nselect 1;\n"),
        SourceFile(TEST, 'queries["find"]'),
    ]

    assert len(list(queries_are_used(files))) == 1


@pytest.mark.parametrize("owner", ["couponflow/clicks/__init__.py", "couponflow/kernel/clicks.py"])
def test_a_folder_or_a_kernel_module_owns_queries(owner: str) -> None:
    files = [SourceFile("sql/queries/clicks.sql", ""), SourceFile(owner, "")]

    assert list(queries_have_an_owner(files)) == []


def test_two_migrations_with_one_number_are_found() -> None:
    names = ["0001_a.sql", "0002_b.sql", "0002_c.sql", "0003_d.sql"]
    files = [SourceFile(f"sql/migrations/{name}", "") for name in names]

    assert list(migrations_are_numbered(files)) == [
        "sql/migrations/0002_c.sql: number 0003 should come here"
    ]
