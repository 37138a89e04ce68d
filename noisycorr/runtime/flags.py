"""From the fields of choices to flags, from words and a config file to values, and from any error to one sentence."""

from __future__ import annotations

import argparse
import difflib
import json
import math
import os
import re
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn, Union

import yaml
from jsonargparse import ArgumentParser, Namespace

from noisycorr.runtime.errors import UsageError
from noisycorr.runtime.signature import in_words
from noisycorr.runtime.strict_yaml import BadYaml, load_yaml

EPILOG = "In names of options - and _ are the same. Where true or false is asked for, --x alone is true, --no_x false."
CONFIG_BYTES = 1_000_000  # no config is longer
TRUE_OR_FALSE = ("true", "false", "yes", "no")
_NEGATIVE = re.compile(r"-(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.IGNORECASE)
ARGUMENT = re.compile(r"`([a-z_]\w*(?:\.\w+)?)(?:=([^`]+))?`")
JOINED = {"source": "::", "path": "::", "stages": ","}  # how a list in a config file is written as one word


class Parser(ArgumentParser):
    """Flags of one verb. Errors of use raise UsageError with one sentence instead of printing a page.

    Args:
        name: The verb, as in `noisycorr clean`.
        usage: What follows the name: the words that are always needed.
        about: First paragraph of the help.
    """

    def __init__(self, name: str, usage: str, about: str) -> None:
        command = f"noisycorr {name}"
        usage = f"{command} {usage} [options]".replace("  ", " ")
        super().__init__(
            prog=command, usage=usage, description=about, epilog=EPILOG, allow_abbrev=False,
            formatter_class=argparse.HelpFormatter,
        )  # fmt: skip
        self.old: dict[str, str] = {}  # former spellings of keys
        self.aliases: dict[str, str] = {}  # other names of keys in a config file
        self.spelled_formerly: dict[str, str] = {}  # those that were used
        self.words: set[str] = set()  # keys that are given without a flag
        self.hints: dict[str, Any] = {}  # type of each key
        self.needed: dict[str, str] = {}  # what to say if it is not given
        self.switches: set[str] = set()  # keys that take no value
        self.objects: set[str] = set()  # keys that name a class, which `--key.option value` belongs to

    def add(self, key: str, hint: Any, default: Any, about: str, *, group: Any = None, need: str = "") -> None:
        """One flag `--key`.

        Args:
            key: Name of the flag and of the key in a config file.
            hint: Type of the value.
            default: Value if it is not given.
            about: Help.
            group: Group of flags in the help, or None.
            need: What to say if it is not given; "" if it need not be.
        """
        self.hints[key] = hint
        shown = "none" if default is None else str(default).lower() if hint is bool else default
        about = f"{about.rstrip('.')} ({in_words(hint)}, {'required' if need else f'default: {shown}'})"
        if need:
            self.needed[key] = need
            default = argparse.SUPPRESS
        (group or self).add_argument(f"--{key}", type=hint, default=default, help=about.replace("%", "%%"))

    def add_word(self, key: str, shown: str, about: str, *, need: str) -> None:
        """A word without a flag, that a config file may give as well."""
        self.words.add(key)
        self.hints[key] = str
        self.needed[key] = need
        about = f"{about.rstrip('.')} (required)".replace("%", "%%")
        self.add_argument(key, type=str, nargs="?", default=argparse.SUPPRESS, metavar=shown, help=about)

    def is_word(self, key: str) -> bool:
        """True if it is given without a flag."""
        return key in self.words

    def add_switch(self, key: str, about: str, short: str | None = None) -> None:
        """A flag without a value."""
        self.hints[key] = bool
        self.switches.add(key)
        names = [f"-{short}", f"--{key}"] if short else [f"--{key}"]
        self.add_argument(*names, action="store_true", help=about)

    def add_object(self, key: str, default: str, about: str) -> None:
        """A flag that names a class, and `--key.OPTION VALUE` for its fields; a config file has class_path, init_args.

        The options come out as one YAML mapping, `key_options`, because the fields are not known before the class.
        """
        self.add(key, str, default, about)
        self.add(f"{key}_options", str | None, None, f"Options of the {key} as a YAML mapping; or one by one, "
                 f"--{key}.OPTION VALUE")  # fmt: skip
        self.objects.add(key)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """One sentence.

        Raises:
            UsageError: Always.
        """
        raise UsageError(_sentence(self, " ".join(message.split()))) from ex


def read_words(parser: Parser, words: Sequence[str], config: Path | None = None) -> Namespace:
    """Parse the words after the verb. Flags win over the config file, wherever they stand.

    Args:
        parser: The verb's.
        words: As typed; dashes in names of flags are underscores.
        config: A config file to start from; else the one that `--config` names.

    Raises:
        UsageError: If a flag is unknown, stands twice, is missing, or has a value of another type.
    """
    words, whole = _normal(parser, words), config
    if config is None and "config" in parser.hints:
        named = [value for word, value in zip(words, [*words[1:], ""]) if word == "--config"]
        named += [word.partition("=")[2] for word in words if word.startswith("--config=")]
        config = Path(named[0]) if named else None
    if config is not None:
        parser.set_defaults(_config_values(parser, config))
    given = parser.parse_args(words)
    for key, hint in parser.hints.items():
        if given.get(key) is None and key in parser.needed:
            lacking = f"config {whole}: {parser.needed[key].removeprefix('--')}" if whole else parser.needed[key]
            raise UsageError(f"{lacking}; `{parser.prog} --help` lists all options.")
        if given.get(key) is None and not _is_optional(hint):
            quotes = " (the word null needs quotes)" if hint is str else ""
            raise UsageError(f"{_place(key, config)} has no value, expected {in_words(hint)}{quotes}.")
        if isinstance(given.get(key), float) and not math.isfinite(given[key]):
            raise UsageError(f"{_place(key, config)} is {given[key]}, expected a finite number.")
    return given


def read_config(path: Path) -> dict[str, Any]:
    """A YAML mapping; UsageError if it is no file, no mapping, or names a key twice."""
    if not path.is_file():
        raise UsageError(f"config {path} is not a file: give the path of a YAML file.")
    if path.stat().st_size > CONFIG_BYTES:
        raise UsageError(f"config {path} has {path.stat().st_size:,} bytes, expected at most {CONFIG_BYTES:,}.")
    try:
        body = load_yaml(path.read_text(encoding="utf-8-sig"))
    except BadYaml as error:
        raise UsageError(f"config {path}: {error}.") from None
    except (OSError, ValueError) as error:
        raise UsageError(f"config {path} cannot be read: {' '.join(str(error).split())}.") from None
    if not isinstance(body, dict):
        found = "nothing" if body is None else f"a {type(body).__name__}"
        raise UsageError(f"config {path} holds {found}, expected keys with values, such as `batch_size: 64`.")
    return body


def flag_type(hint: Any) -> Any:
    """The type of a flag for the type of a parameter: paths and lists are typed as text, objects have no flag."""
    if typing.get_origin(hint) not in (Union, types.UnionType):
        return str if isinstance(hint, type) and issubclass(hint, os.PathLike) else hint
    parts = [flag_type(part) for part in typing.get_args(hint)]
    plain = [part for part in parts if part in (str, int, float, bool, type(None)) or _is_literal(part)]
    return Union[tuple(dict.fromkeys(plain))]  # noqa: UP007  # built from parts


def _is_literal(hint: Any) -> bool:
    return typing.get_origin(hint) is Literal


def _is_optional(hint: Any) -> bool:
    return type(None) in typing.get_args(hint)


def _normal(parser: Parser, words: Sequence[str]) -> list[str]:
    """Words with underscores in names of flags; for true or false, `--x` is `--x=true` and `--no_x` is `--x=false`."""
    out: list[str] = []
    seen: set[str] = set()
    options: dict[str, dict[str, Any]] = {}
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if word == "--":  # what follows are no flags
            return [*out, *_object_words(options, seen), word, *rest]
        if not word.startswith("--"):
            out.append(word)
            continue
        name, sign, value = word.partition("=")
        key = _present(parser, name[2:].replace("-", "_"))
        if key in parser.words:  # it was a flag once, and leads the words now
            if not sign and not rest:
                raise UsageError(f"{name} needs a value.")
            out.insert(0, value if sign else rest.pop(0))
            continue
        root, dot, item = key.partition(".")
        if dot and root in parser.objects:
            if not sign and not rest:
                raise UsageError(f"--{key} needs a value.")
            if item in options.setdefault(root, {}):
                raise UsageError(f"--{key} stands twice: keep one of them.")
            options[root][item] = yaml.safe_load(value if sign else rest.pop(0))
            continue
        plain = key.removeprefix("no_") if key not in parser.hints else key
        if parser.hints.get(plain) is bool and plain not in parser.switches and not sign:
            if plain != key or not rest or rest[0].lower() not in TRUE_OR_FALSE:
                key, sign, value = plain, "=", "true" if plain == key else "false"
        elif not sign and rest and _NEGATIVE.fullmatch(rest[0]):  # argparse takes -1e-3 for a flag
            sign, value = "=", rest.pop(0)
        if key in seen:
            raise UsageError(f"--{key} stands twice: keep one of them.")
        seen.add(key)
        out.append(f"--{key}{sign}{value}")
    return [*out, *_object_words(options, seen)]


def _present(parser: Parser, key: str) -> str:
    """The present spelling of a key."""
    if key in parser.hints or key not in parser.old:
        return key
    parser.spelled_formerly[key] = parser.old[key]
    return parser.old[key]


def _object_words(options: dict[str, dict[str, Any]], seen: set[str]) -> list[str]:
    """Options of objects as one word each."""
    for root in options:
        if f"{root}_options" in seen:
            raise UsageError(f"--{root}_options and --{root}.OPTION exclude each other: give one of them.")
    return [f"--{root}_options={json.dumps(found)}" for root, found in options.items()]


def _split_object(key: str, value: Any, path: Path) -> dict[str, Any]:
    """Name and options of an object in a config file."""
    if not isinstance(value, dict):
        return {key: value}
    if unknown := set(value) - {"class_path", "init_args"}:
        raise UsageError(f"config {path}: {key} has {sorted(unknown)[0]!r}, expected class_path and init_args.")
    found = {key: value.get("class_path")}
    if value.get("init_args"):
        found[f"{key}_options"] = json.dumps(value["init_args"])
    return {name: part for name, part in found.items() if part is not None}


def _config_values(parser: Parser, path: Path) -> dict[str, Any]:
    """Checked values of a config file by their keys."""
    values: dict[str, Any] = {}
    for name, value in read_config(path).items():
        key = str(name).replace("-", "_")
        key = _present(parser, parser.aliases.get(key, key))
        if key not in parser.hints or key == "config":
            raise UsageError(f"config {path}: {key!r} is not a key of `{parser.prog}`{_hint(key, parser)}")
        if key in values:
            raise UsageError(f"config {path}: key {key!r} stands twice, once with dashes: keep one of them.")
        if key in parser.switches and not isinstance(value, bool):
            raise UsageError(f"config {path}: {key} is {value!r}, expected true or false.")
        if key in parser.objects:
            values |= _split_object(key, value, path)
            continue
        values[key] = JOINED[key].join(map(str, value)) if key in JOINED and isinstance(value, list) else value
    try:
        checked = parser.parse_object(values)
    except UsageError as error:
        raise UsageError(f"config {path}: {str(error).removeprefix('--')}") from error
    return {key: checked[key] for key in values}


def _sentence(parser: Parser, message: str) -> str:
    """An error of argparse or jsonargparse in our words; as it is if it is of an unknown kind."""
    if match := re.match(r"unrecognized arguments: (.+)", message, re.IGNORECASE):
        word = match[1].split()[0]
        if word.startswith("-"):
            return f"{word} is not an option of `{parser.prog}`{_hint(word.lstrip('-').partition('=')[0], parser)}"
        return f"{word!r} is one word too many for `{parser.prog}`: put names with spaces in quotes."
    if match := re.match(r'Parser key "(\w+)":', message):
        key = match[1]
        found = re.search(r"(?:Got|Given) value: (.*)$", message)
        value = f" is {found[1]!r}," if found else ":"
        return f"--{key}{value} expected {in_words(parser.hints.get(key, str))}."
    if match := re.match(r"argument (?:-\w[,/ ]+)?--(\w+): expected", message):
        return f"--{match[1]} needs a value: {in_words(parser.hints.get(match[1], str))}."
    if match := re.match(r"argument (?:-\w[,/ ]+)?--(\w+): ignored explicit argument (.*)", message):
        return f"--{match[1]} takes no value, but {match[2]} was given."
    return message if message.endswith(".") else f"{message}."


def as_flags(message: str, parser: Parser) -> str:
    """A message of the package as the command line says it: its arguments are flags there.

    `name` becomes --name, `name=True` too, `name=value` --name value; only for names that the verb takes.
    """

    def flag(match: re.Match[str]) -> str:
        name, value = match[1], match[2]
        if name.partition(".")[0] not in parser.hints or parser.is_word(name):
            return match[0]
        return f"--{name}" if value in (None, "True") else f"--{name} {value}"

    return ARGUMENT.sub(flag, message)


def _hint(key: str, parser: Parser) -> str:
    near = difflib.get_close_matches(key.replace("-", "_"), parser.hints, 1)
    return f"; did you mean {near[0]}?" if near else f"; `{parser.prog} --help` lists them all."


def _place(key: str, config: Path | None) -> str:
    return f"--{key}" if config is None else f"{key} (a flag, or in {config})"
