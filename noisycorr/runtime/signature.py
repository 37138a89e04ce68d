"""What a function of the front door takes, flat: its own parameters, and the fields of its choices.

    def clean(source, output_folder=None, *, embed: Embed = Embed(), decide: Decide = Decide()) -> CleanRun: ...

    clean = flat(clean)
    clean("sample", batch_size=8, precision=0.95)     # fields of Embed and Decide, checked and built

A function says once what it takes. Python, the command line, the help of both and the stub for editors read it here.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import functools
import inspect
import numbers
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

import docstring_parser

from noisycorr.runtime.errors import UsageError
from noisycorr.runtime.strict_yaml import load_yaml

Returned = TypeVar("Returned")
EMPTY = inspect.Parameter.empty


@dataclass(frozen=True)
class Without:
    """Marks a choice of which some fields are not asked for, `embed: Annotated[Embed, Without("workers")]`."""

    fields: frozenset[str]

    def __init__(self, *fields: str) -> None:
        object.__setattr__(self, "fields", frozenset(fields))


@dataclass(frozen=True)
class Unset:
    """Marks a choice whose fields default to None: the function gets a mapping of those that were given."""


@dataclass(frozen=True)
class HandedIn:
    """Marks a parameter that nobody types: what another capability lends to this one."""


@dataclass(frozen=True)
class Named:
    """Marks a parameter that names a class; the parameter `<name>_options` holds the fields of that class."""


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """One thing that a function takes.

    Attributes:
        name: In Python, as a flag and in a config file.
        hint: Its type, without marks.
        default: Its default; `EMPTY` if it must be given.
        about: What it is, from the docstring of the function or of the choice.
        choice: Name of the function's parameter that it is a field of; "" if it is one itself.
        group: What the choice is about; "" if it belongs to none.
        named: True if it names a class that has options.
        positional: True if it may be given without its name.
    """

    name: str
    hint: Any
    default: Any
    about: str
    choice: str = ""
    group: str = ""
    named: bool = False
    positional: bool = False

    @property
    def needed(self) -> bool:
        """True if there is no default."""
        return self.default is EMPTY


@functools.cache
def parameters(function: Callable[..., Any]) -> tuple[Parameter, ...]:
    """All that a function takes, flat, in the order of its signature; a field that two choices share stands once."""
    function = inspect.unwrap(function)
    hints = _hints(function)
    told = abouts(function)
    found: dict[str, Parameter] = {}
    for name, own in inspect.signature(function).parameters.items():
        if name == "self":
            continue
        hint, marks = _unmarked(hints[name])
        if any(isinstance(mark, HandedIn) for mark in marks):
            continue
        if (choice := choice_of(hint)) is None:
            found[name] = Parameter(
                name=name, hint=hint, default=own.default, about=told.get(name, ""),
                named=any(isinstance(mark, Named) for mark in marks), positional=own.kind is not own.KEYWORD_ONLY,
            )  # fmt: skip
            continue
        for field in _fields(choice, name, marks):
            found.setdefault(field.name, field)
    return tuple(found.values())


def choice_of(hint: Any) -> type | None:
    """The dataclass that a type asks for, or None if it asks for a plain value."""
    kinds = [part for part in (typing.get_args(hint) or (hint,)) if part is not type(None)]
    only = kinds[0] if len(kinds) == 1 else None
    return only if isinstance(only, type) and dataclasses.is_dataclass(only) else None


def abouts(documented: Any) -> dict[str, str]:
    """What a docstring says of each parameter or attribute, on one line."""
    parsed = docstring_parser.parse(inspect.getdoc(documented) or "")
    return {param.arg_name: " ".join((param.description or "").split()) for param in parsed.params}


def bind(function: Callable[..., Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """What to call a function with: the flat values, gathered into its choices.

    Args:
        function: With choices among its parameters.
        values: By name; what is not there keeps its default.

    Raises:
        UsageError: If a name is unknown, or a choice refuses its values.
    """
    function = inspect.unwrap(function)
    known = {parameter.name: parameter for parameter in parameters(function)}
    if unknown := [name for name in values if name not in known]:
        raise UsageError(f"{function.__name__} takes no `{unknown[0]}`{nearest(unknown[0], known)}")
    hints = _hints(function)
    bound: dict[str, Any] = {}
    for name, own in inspect.signature(function).parameters.items():
        hint, marks = _unmarked(hints[name]) if name in hints else (None, ())
        if (choice := choice_of(hint)) is None:
            if name in values:
                bound[name] = values[name]
            continue
        names = {field.name for field in _asked(choice, marks)}
        given = {key: checked(key, known[key].hint, value) for key, value in values.items() if key in names}
        if any(isinstance(mark, Unset) for mark in marks):
            bound[name] = {key: value for key, value in given.items() if value is not None}
        elif given or own.default is EMPTY:
            bound[name] = made(choice, given | _kept(own.default, given))
    return bound


def made(choice: type, values: Mapping[str, Any]) -> Any:
    """A choice of these values; UsageError if it refuses them."""
    try:
        return choice(**values)
    except UsageError:
        raise
    except ValueError as error:
        raise UsageError(f"{error}.") from error


def checked(name: str, hint: Any, value: Any) -> Any:
    """A value of the type that is asked for; a whole number does for a number.

    Raises:
        UsageError: If it is another one.
    """
    if _fits(hint, value):
        plain = value.item() if isinstance(value, numbers.Number) and hasattr(value, "item") else value
        return float(plain) if isinstance(plain, int) and _takes_floats_only(hint) else plain
    raise UsageError(f"`{name}` is {value!r}, expected {in_words(hint)}.")


def named_options(name: str, options: Mapping[str, Any] | str | None, kind: type) -> dict[str, Any]:
    """Options of a class that a parameter names, checked by the types of its fields.

    Args:
        name: Of the parameter that names the class; `name_options` holds them.
        options: A mapping, or YAML text of one.
        kind: The class, a dataclass.

    Returns:
        The values; unknown names are left for the class to refuse.

    Raises:
        UsageError: If it is no mapping, or a value has another type.
    """
    try:
        values = load_yaml(options) if isinstance(options, str) else options
    except ValueError as error:
        raise UsageError(f"`{name}_options` is {options!r}: {error}.") from None
    if values is None:
        return {}
    if not isinstance(values, Mapping):
        raise UsageError(f"`{name}_options` is {options!r}, expected a mapping such as {{threshold: 0.7}}.")
    hints = typing.get_type_hints(kind)
    names = {field.name for field in dataclasses.fields(kind) if field.init}
    return {str(key): checked(f"{name}.{key}", hints[key], _number(hints[key], value)) if key in names else value
            for key, value in values.items()}  # fmt: skip


def _number(hint: Any, value: Any) -> Any:
    """1e-3 as a number: YAML takes it for text, because it has no point."""
    if isinstance(value, str) and not _fits(hint, value) and _fits(hint, 0.5):
        with contextlib.suppress(ValueError):
            return float(value)
    return value


def in_words(hint: Any) -> str:
    """What values a type stands for."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return f"one of {', '.join(map(str, parts))}"
    if origin in (typing.Union, types.UnionType):
        return " or ".join(in_words(part) for part in parts if part is not type(None))
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    return words.get(hint, getattr(hint, "__name__", str(hint)))


def nearest(word: str, known: Mapping[str, Any]) -> str:
    """The end of a sentence about a word that is unknown."""
    near = difflib.get_close_matches(word, known, 1)
    return f"; did you mean `{near[0]}`?" if near else f": it takes {', '.join(known)}."


def flat(function: Callable[..., Returned], **handed: Any) -> Callable[..., Returned]:
    """A function of choices as one of their fields; its signature and docstring list them all.

    Type checkers see what it returns; the stub of the package has its arguments.

    Args:
        function: With choices among its parameters.
        handed: Values of parameters that are marked `HandedIn`.
    """
    function = inspect.unwrap(function)
    names = [name for name, own in inspect.signature(function).parameters.items() if own.kind is not own.KEYWORD_ONLY]

    @functools.wraps(function)
    def call(*words: Any, **options: Any) -> Any:
        if len(words) > len(names):
            raise UsageError(f"{function.__name__} takes {', '.join(names)} without names; give the rest by name.")
        values = dict(zip(names, words))
        if twice := sorted(set(values) & set(options)):
            raise UsageError(f"{function.__name__} got `{twice[0]}` twice.")
        own = {"self": values.pop("self")} if "self" in values else {}
        return function(**own, **handed, **bind(function, values | options))

    call.__signature__ = _signature(function)  # type: ignore[attr-defined]
    call.__doc__ = _document(function)
    return call


def _signature(function: Callable[..., Any]) -> inspect.Signature:
    own = inspect.signature(function)
    shown = [own.parameters["self"]] if "self" in own.parameters else []
    for item in parameters(function):
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD if item.positional else inspect.Parameter.KEYWORD_ONLY
        shown.append(inspect.Parameter(item.name, kind, default=item.default, annotation=item.hint))
    return own.replace(parameters=shown)


def _document(function: Callable[..., Any]) -> str:
    """The docstring with the fields of the choices after the parameters of the function."""
    head, sign, rest = (inspect.getdoc(function) or "").partition("\nArgs:\n")
    _, end, tail = rest.partition("\n\n") if sign else ("", "", "")
    lines = [f"    {item.name}: {item.about}" for item in parameters(function) if not item.choice]
    group = ""
    for item in parameters(function):
        if item.choice and item.group != group:
            group = item.group
            lines += ["", f"    {group}:"]
        if item.choice:
            lines.append(f"    {item.name}: {item.about}")
    return f"{head}\nArgs:\n" + "\n".join(lines) + end + tail


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    """Types of what a function takes; not of what it returns, which may be the class that is being made."""
    if isinstance(function, type):
        return typing.get_type_hints(function, include_extras=True)
    taken = {name: hint for name, hint in function.__annotations__.items() if name != "return"}
    return typing.get_type_hints(
        types.SimpleNamespace(__annotations__=taken),
        function.__globals__,
        include_extras=True,  # type: ignore[arg-type]
    )


def _fields(choice: type, parameter: str, marks: tuple[Any, ...]) -> list[Parameter]:
    unset = any(isinstance(mark, Unset) for mark in marks)
    told, hints = abouts(choice), typing.get_type_hints(choice)
    title = (docstring_parser.parse(choice.__doc__ or "").short_description or choice.__name__).split(". ")[0]
    return [
        Parameter(
            name=field.name, hint=hints[field.name] | None if unset else hints[field.name],
            default=None if unset else EMPTY if field.default is dataclasses.MISSING else field.default,
            about=told.get(field.name, ""), choice=parameter, group=title.rstrip("."),
        )
        for field in _asked(choice, marks)
    ]  # fmt: skip


def _asked(choice: type, marks: tuple[Any, ...]) -> list[dataclasses.Field[Any]]:
    """The fields of a choice that are asked for."""
    left_out = frozenset().union(*(mark.fields for mark in marks if isinstance(mark, Without)))
    return [field for field in dataclasses.fields(choice) if field.init and field.name not in left_out]


def _kept(default: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """What the function's own default of a choice sets, where nothing else was given."""
    if not dataclasses.is_dataclass(default) or isinstance(default, type):
        return {}
    return {item.name: getattr(default, item.name) for item in dataclasses.fields(default) if item.name not in given}


def _unmarked(hint: Any) -> tuple[Any, tuple[Any, ...]]:
    if typing.get_origin(hint) is Annotated:
        plain, *marks = typing.get_args(hint)
        return plain, tuple(marks)
    return hint, ()


def _fits(hint: Any, value: Any) -> bool:
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return value in parts
    if origin in (typing.Union, types.UnionType):
        return any(_fits(part, value) for part in parts)
    if hint is type(None):
        return value is None
    if hint in (int, float):  # those of NumPy, too
        return isinstance(value, numbers.Real if hint is float else numbers.Integral) and not isinstance(value, bool)
    kind = origin or hint
    return not isinstance(kind, type) or isinstance(value, kind)


def _takes_floats_only(hint: Any) -> bool:
    parts = typing.get_args(hint) or (hint,)
    return float in parts and int not in parts
