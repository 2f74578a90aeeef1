"""Reading settings: a TOML file, then the environment over it, with every problem found at once.

What can be set is in `config.py`, what must hold between the values in `config_rules.py`; nothing
here knows a key by name.
"""

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec

from couponflow.config import EXAMPLES, KEYS, SECRETS, SECTIONS, VARIABLES, Key, Settings
from couponflow.config_rules import broken_rules
from couponflow.config_values import (
    closest,
    convert,
    expectation,
    literal,
    plain,
    read_tables,
    row_of,
)

CONFIG_VARIABLE = "COUPONFLOW_CONFIG"
_NOT_SETTINGS = (CONFIG_VARIABLE, "COUPONFLOW_CRASH_POINT")
"""Variables of ours that set no key; the second is read by `kernel/crash_points.py`, for tests."""
DEFAULT_FILE = Path("couponflow.toml")

_BARE_NAME = re.compile(r"[A-Za-z0-9_-]+")
"""A table's name that TOML does without quotes."""

Source = Literal["default", "file", "environment"]


@dataclass(frozen=True, slots=True)
class ConfigurationProblem:
    """One thing that is wrong: where it is set, what is wrong with it, and what would be right.

    `example` is empty where nothing could be right: a name that resembles no key.
    """

    key: str
    problem: str
    example: str

    def __str__(self) -> str:
        example = f" (example: {self.example})" if self.example else ""
        return f"{self.key}: {self.problem}{example}"


class ConfigurationInvalid(Exception):
    """The file and the environment do not make settings that couponflow can start with.

    Each problem names the key, its variable and a value that would do. Mend all of them, then
    run `couponflow check`.
    """

    def __init__(self, problems: list[ConfigurationProblem]) -> None:
        self.problems = problems
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        lines = "".join(f"\n  - {problem}" for problem in problems)
        super().__init__(f"{count} in the configuration:{lines}")


@dataclass(frozen=True, slots=True)
class LoadedSettings:
    """Settings, and where each value came from."""

    settings: Settings
    sources: Mapping[str, Source]
    """The source of each key that is not at its default, by `section.key`."""


class DescribedSetting(NamedTuple):
    """A setting as `couponflow check` shows it."""

    key: str
    variable: str
    value: str
    source: Source


def load_settings(config_file: Path | None, environment: Mapping[str, str]) -> Settings:
    """Read the file, then the environment over it.

    Without `config_file` the file is the one that COUPONFLOW_CONFIG names, else `couponflow.toml`
    in the current folder, else none. Raises `ConfigurationInvalid` with every problem there is.
    """
    return load_with_sources(config_file, environment).settings


def load_with_sources(config_file: Path | None, environment: Mapping[str, str]) -> LoadedSettings:
    """As `load_settings`, remembering which source set which key."""
    reader = _Reader()
    reader.read_file(config_file, environment)
    reader.read_environment(environment)
    settings = reader.settings()
    reader.check_rules(settings)
    if reader.problems:
        raise ConfigurationInvalid(reader.problems)
    return LoadedSettings(settings, reader.sources)


def describe_settings(loaded: LoadedSettings) -> list[DescribedSetting]:
    """Every key with its value, secrets masked, in the order of `config/couponflow.toml`."""
    return [
        DescribedSetting(
            key=key.written,
            variable=key.variables[0],
            value=_shown(key, loaded.settings),
            source=loaded.sources.get(key.path, "default"),
        )
        for key in KEYS.values()
    ]


def mask_url(url: str) -> str:
    """Replace the passwords of a URL by `***`.

    It masks up to the last `@`, so that a password with an unescaped `@` or `/` stays hidden.
    """
    without_user_password = re.sub(r"://([^:]*):.*@", r"://\1:***@", url, flags=re.DOTALL)
    return re.sub(r"(password=)[^&]*", r"\1***", without_user_password, flags=re.IGNORECASE)


class _Reader:
    """Collects values from the sources, and the problems met on the way."""

    def __init__(self) -> None:
        self.problems: list[ConfigurationProblem] = []
        self.sources: dict[str, Source] = {}
        self._values: dict[str, object] = {}
        self._unread: set[str] = set()
        """Keys that are set somewhere, or may be, to a value that could not be read."""

    def settings(self) -> Settings:
        """The settings as far as they could be read, with defaults for the rest."""
        tree: dict[str, object] = {}
        for section in SECTIONS:
            tree[section] = {
                key.name: self._values[key.path]
                for key in KEYS.values()
                if key.section == section and key.path in self._values
            }
        tree |= {path: value for path, value in self._values.items() if not KEYS[path].section}
        return msgspec.convert(tree, Settings)

    def check_rules(self, settings: Settings) -> None:
        """Check what must hold between values, leaving out those that could not be read."""
        for rule in broken_rules(settings):
            if self._unread.isdisjoint(rule.keys):
                key = KEYS[rule.keys[0]]
                self._problem(key.label, rule.problem, rule.example or plain(key.example))

    def read_file(self, config_file: Path | None, environment: Mapping[str, str]) -> None:
        for name, value in self._parse_file(config_file, environment).items():
            if name not in SECTIONS:
                self._take_from_file("", name, value)
            elif isinstance(value, dict):
                for inner_name, inner_value in value.items():
                    self._take_from_file(name, inner_name, inner_value)
            else:
                # The value is not shown: somebody may have put the URL itself here.
                self._problem(name, "is a section, not a key", f"[{name}]")

    def read_environment(self, environment: Mapping[str, str]) -> None:
        for variable, text in environment.items():
            if variable.startswith("COUPONFLOW_") and text:
                self._check_is_known(variable)
        for key in KEYS.values():
            text = self._text_of(key, environment)
            if text and isinstance(key.default, dict):
                self._take_json(key, text)
            elif text and isinstance(key.default, tuple):
                parts = [part.strip() for part in text.split(",")]
                self._take(key, [part for part in parts if part], "environment")
            elif text:
                self._take(key, text, "environment")

    def _parse_file(
        self, config_file: Path | None, environment: Mapping[str, str]
    ) -> dict[str, object]:
        named_by, path = _find_file(config_file, environment)
        if path is None:
            return {}
        example = "a file like config/couponflow.toml"
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            self._problem(named_by, f"{path} cannot be read: {_reason(error)}", example)
            self._unread.update(KEYS)
            return {}
        try:
            return tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            place = _place(error, text)
            self._problem(named_by, f"{path} is not valid TOML: {place}", example)
            self._unread.update(KEYS)
            return {}

    def _take_from_file(self, section: str, name: str, value: object) -> None:
        key = KEYS.get(f"{section}.{name}" if section else name)
        if key is not None and key.section == section:
            self._take(key, value, "file")
        elif isinstance(value, dict) and not section:
            self.problems.append(_unknown_section(name))
        else:
            self.problems.append(_unknown_key(section, name))

    def _check_is_known(self, variable: str) -> None:
        # A key whose own name ends in `file` is no file to read another key from.
        known = {variable, variable.removesuffix("_FILE")} & VARIABLES.keys()
        if variable not in _NOT_SETTINGS and not known:
            self.problems.append(_unknown_variable(variable))

    def _text_of(self, key: Key, environment: Mapping[str, str]) -> str:
        texts = {name: self._read_variable(key, name, environment) for name in key.variables}
        found = {name: text for name, text in texts.items() if text}
        if len(set(found.values())) > 1:
            both = " and ".join(found)
            self._unreadable(key, f"{both} are both set and differ", f"{key.variables[0]} alone")
        return next(iter(found.values()), "")

    def _read_variable(self, key: Key, variable: str, environment: Mapping[str, str]) -> str:
        text, file = environment.get(variable, ""), environment.get(f"{variable}_FILE", "")
        if not file:
            return text
        example = f"{variable}_FILE alone, naming a file that holds the value"
        if text:
            self._unreadable(key, f"{variable} and {variable}_FILE are both set", example)
            return ""
        try:
            content = Path(file).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = f"{variable}_FILE names {file}, which cannot be read: {_reason(error)}"
            self._unreadable(key, reason, example)
            return ""
        value = content.removesuffix("\n")
        if not value:
            self._unreadable(key, f"{variable}_FILE names {file}, which is empty", example)
        return value

    def _take_json(self, key: Key, text: str) -> None:
        try:
            value: object = msgspec.json.decode(text.encode(errors="replace"))
        except msgspec.DecodeError as error:
            self._unreadable(key, f"must be a JSON object: {error}", "{}")
        else:
            self._take(key, value, "environment")

    def _take(self, key: Key, value: object, source: Source) -> None:
        row = row_of(key.type)
        if row is not None and isinstance(value, dict):
            value = self._right_tables(key, row, value, source)
        converted = convert(key.type, value, strict=source == "file")
        if converted is None:
            found = "" if key.path in SECRETS else f", not {literal(value)}"
            problem = f"must be {expectation(key.type)}{found}"
            self._unreadable(key, problem, _example(key, source))
        else:
            self._values[key.path] = converted
            self.sources[key.path] = source
            self._unread.discard(key.path)

    def _right_tables(
        self, key: Key, row: type[msgspec.Struct], tables: dict[str, object], source: Source
    ) -> dict[str, object]:
        """Those of the tables that are right; the rules are checked for them all the same."""
        prefix = f"{key.path}."
        examples = {
            path.removeprefix(prefix): example
            for path, example in EXAMPLES.items()
            if path.startswith(prefix)
        }
        right, problems = read_tables(row, tables, examples, strict=source == "file")
        for each in problems:
            name = each.table if _BARE_NAME.fullmatch(each.table) else repr(each.table)
            label = f"[{key.path}.{name}] {each.field}".rstrip()
            example = literal(each.example) if each.example != "" else ""
            self._problem(f"{label} ({key.variables[0]})", each.problem, example)
        return right

    def _unreadable(self, key: Key, problem: str, example: str) -> None:
        self._unread.add(key.path)
        self._problem(key.label, problem, example)

    def _problem(self, label: str, problem: str, example: str) -> None:
        self.problems.append(ConfigurationProblem(label, problem, example))


def _find_file(config_file: Path | None, environment: Mapping[str, str]) -> tuple[str, Path | None]:
    """What names the file, and the file."""
    if config_file is not None:
        return "--config", config_file
    if named := environment.get(CONFIG_VARIABLE):
        return CONFIG_VARIABLE, Path(named)
    return str(DEFAULT_FILE), DEFAULT_FILE if DEFAULT_FILE.exists() else None


def _example(key: Key, source: Source) -> str:
    if source == "environment":
        return plain(key.example)
    return f"[{key.path}.NAME]" if row_of(key.type) else literal(key.example)


def _reason(error: OSError | UnicodeDecodeError) -> str:
    return error.strerror or str(error) if isinstance(error, OSError) else "it is not UTF-8 text"


def _place(error: tomllib.TOMLDecodeError, text: str) -> str:
    """The parser's message with line and column, which it leaves out at the end of the file."""
    lines = text.split("\n")
    end = f"at line {len(lines)}, column {len(lines[-1]) + 1}"
    return str(error).replace("at end of document", f"{end}, the end of the file")


def _unknown_section(name: str) -> ConfigurationProblem:
    tables = [key.path for key in KEYS.values() if row_of(key.type)]
    close = closest(name, [*SECTIONS, *tables])
    return _unknown(f"[{name}]", f"[{close}]", "") if close else _unknown(f"[{name}]")


def _unknown_key(section: str, name: str) -> ConfigurationProblem:
    """Suggests the same name in another section, else the most similar key."""
    written = f"[{section}] {name}" if section else name
    path = f"{section}.{name}" if section else name
    same_name = [key.path for key in KEYS.values() if key.name == name]
    close = next(iter(same_name), closest(path, KEYS))
    if not close:
        return _unknown(written)
    return _unknown(written, KEYS[close].written, f" = {literal(KEYS[close].example)}")


def _unknown_variable(variable: str) -> ConfigurationProblem:
    # Without the prefix, which would make every variable look much like every other.
    names = {name.removeprefix("COUPONFLOW_"): name for name in [CONFIG_VARIABLE, *VARIABLES]}
    close = names.get(closest(variable.removeprefix("COUPONFLOW_").removesuffix("_FILE"), names))
    if close is None:
        return _unknown(variable)
    key = VARIABLES.get(close)
    return _unknown(variable, close, f"={plain(key.example) if key else DEFAULT_FILE}")


def _unknown(name: str, meant: str = "", value: str = "") -> ConfigurationProblem:
    if not meant:
        return ConfigurationProblem(name, "is unknown; config/couponflow.toml lists every key", "")
    return ConfigurationProblem(name, f"is unknown: did you mean {meant}?", meant + value)


def _shown(key: Key, settings: Settings) -> str:
    holder: object = getattr(settings, key.section) if key.section else settings
    text = plain(getattr(holder, key.name))
    if key.path not in SECRETS or not text:
        return text
    return mask_url(text) if key.name == "url" else "***"
