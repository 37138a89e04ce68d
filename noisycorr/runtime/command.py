"""The command line as a table over functions: a verb names one, and its flags are read off its signature.

Verb("clean", "noisycorr.clean.verbs:clean", parallel=True, config=True)
Verb("decide", "noisycorr.clean.result:CleanRun.decide")       # the first word is the run folder
"""

from __future__ import annotations

import ast
import difflib
import errno
import importlib
import importlib.util
import inspect
import io
import os
import sys
import textwrap
import traceback
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import docstring_parser
from jsonargparse import Namespace

from noisycorr.runtime import console, dist
from noisycorr.runtime.errors import UsageError
from noisycorr.runtime.flags import Parser, as_flags, flag_type, read_words
from noisycorr.runtime.signature import Parameter, parameters
from noisycorr.runtime.version import __version__

ABOUT = "Which image-text pairs are wrong, how sure we are, and a cleaned set with every decision explained."
FULL = (errno.ENOSPC, errno.EDQUOT)
RUN = "run"  # the word of verbs that are methods of a result
CONFIG = "YAML file with any of these keys{}; flags win over it"
SOURCE_KEY = "path"  # of a source in a config file


@dataclass(frozen=True)
class Verb:
    """One row of the table.

    Attributes:
        name: As it is typed; one or two words.
        calls: `module:function`, or `module:Class.method` whose object is the run folder that the first word names.
        parallel: True if every process has its share of the work; else only the main one runs it.
        config: True if a YAML file can give the flags.
        shows: What to print of the result on stdout; None = nothing.
        front: Name in the package, where the front door adds something to what it calls.
        old: Former spellings of flags, each with the present one; they work, and say so.
    """

    name: str
    calls: str
    parallel: bool = False
    config: bool = False
    shows: Callable[[Any], str] | None = None
    front: str = ""
    old: Mapping[str, str] = field(default_factory=dict)

    def function(self) -> Callable[..., Any]:
        """What it calls."""
        module, _, path = ("noisycorr", "", self.front) if self.front else self.calls.partition(":")
        found: Any = importlib.import_module(module)
        for name in path.split("."):
            found = getattr(found, name)
        return typing.cast(Callable[..., Any], found)

    @property
    def on_run(self) -> bool:
        """True if it is a method of a result."""
        return "." in self.calls.partition(":")[2]

    def summary(self) -> str:
        """First paragraph of its help, read from the source: importing all verbs would take seconds."""
        module, _, path = self.calls.partition(":")
        spec = importlib.util.find_spec(module)
        assert spec is not None and spec.origin is not None
        body: Any = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
        for name in path.split("."):
            body = next(node for node in body.body if getattr(node, "name", None) == name)
        return (ast.get_docstring(body) or "").partition("\n")[0]


def main(verbs: Sequence[Verb], opens: Callable[[str], Any], arguments: Sequence[str] | None = None) -> int:
    """Run one verb. Exit status: 0 done, 1 failed, 2 bad usage.

    Args:
        verbs: The table.
        opens: Gives the result that a run folder holds.
        arguments: The words; those of the process if None.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    phrase: list[Callable[[str], str]] = [str]
    try:
        return _run(verbs, opens, words, phrase)
    except UsageError as error:
        _complain(phrase[0](str(error)))
        return 2
    except BrokenPipeError:  # the reader of our output has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        if console.is_verbose():
            traceback.print_exc()
        _complain(_failure(error))
        return 1
    except MemoryError:
        _complain("there is not enough memory; a smaller --number_sample_per_shard or --batch_size needs less.")
        return 1
    except FloatingPointError as error:  # a training that diverged
        _complain(phrase[0](str(error)))
        return 1
    except KeyboardInterrupt:
        _complain("interrupted; the same command continues.")
        return 1


def _run(
    verbs: Sequence[Verb], opens: Callable[[str], Any], words: list[str], phrase: list[Callable[[str], str]]
) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(_help(verbs), end="")
        return 0 if words else 2
    if words[0] == "--version":
        print(f"noisycorr {__version__}")
        return 0
    verb, words = _find(verbs, words)
    parser = make_parser(verb)
    phrase[0] = lambda message: as_flags(message, parser)
    if {"-h", "--help"} & set(words[: words.index("--")] if "--" in words else words):
        parser.print_help()
        return 0
    given = read_words(parser, words)
    if given.quiet and given.verbose:
        raise UsageError("--quiet and --verbose exclude each other: give one of them.")
    for name in ("TRANSFORMERS_VERBOSITY", "DATASETS_VERBOSITY"):
        os.environ.setdefault(name, "info" if given.verbose else "error")
    console.set_up(quiet=given.quiet, verbose=given.verbose, log_format=given.log_format, phrase=phrase[0])
    for old, new in parser.spelled_formerly.items():
        shown = "the first word" if parser.is_word(new) else f"--{new}"
        console.warn(f"--{old} is {shown} now; the former spelling works in this version, and not in the next.")
    if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal that lacks a letter of a caption is no failure
        sys.stdout.reconfigure(errors="backslashreplace")
    if verb.parallel or dist.is_main():
        _call(verb, opens, given)
    dist.leave()
    return 0


def _call(verb: Verb, opens: Callable[[str], Any], given: Namespace) -> None:
    function = verb.function()
    values = {item.name: given[item.name] for item in parameters(function) if item.name in given}
    own = [_opened(verb, opens(given[RUN]))] if verb.on_run else []
    result = function(*own, **values)
    if verb.shows is not None and result is not None and (shown := verb.shows(result)):
        print(shown, end="" if shown.endswith("\n") else "\n")


def _opened(verb: Verb, found: Any) -> Any:
    """The result that a verb belongs to; UsageError if the folder holds one of another kind."""
    module, _, path = verb.calls.partition(":")
    kind = getattr(importlib.import_module(module), path.split(".")[0])
    if not isinstance(found, kind):
        raise UsageError(f"{found.folder} holds {found.kind}, but `noisycorr {verb.name}` needs {kind.kind}.")
    return found


def make_parser(verb: Verb) -> Parser:
    """The parser of one verb."""
    function = verb.function()
    takes = parameters(function)
    words = [RUN] if verb.on_run else []
    words += [item.name for item in takes if _is_word(item)]
    needed = [item for item in takes if item.needed and not _is_word(item)]
    usage = " ".join([word.upper() for word in words] + [f"--{item.name} {item.name.upper()}" for item in needed])
    parser = Parser(verb.name, usage, _about(function))
    parser.old.update(verb.old)
    if verb.on_run:
        parser.add_word(RUN, RUN.upper(), "Run folder", need="the run is missing: name its folder")
    if RUN in words:
        parser.old.setdefault("output_folder", RUN)
    if verb.config:
        source = any(item.name == "source" for item in takes)
        parser.add("config", str | None, None, CONFIG.format(", `path` among them" if source else ""))
        parser.aliases[SOURCE_KEY] = "source"
    groups: dict[str, Any] = {}
    options = {f"{item.name}_options" for item in takes if item.named}
    for item in takes:
        if item.group and item.group not in groups:
            groups[item.group] = parser.add_argument_group(item.group)
        lacks = f"--{item.name} is missing: {item.about.partition(';')[0].rstrip('.')}"
        if _is_word(item):
            lacks = lacks.replace(f"--{item.name}", f"the {item.name}")
            parser.add_word(item.name, item.name.upper(), item.about, need=lacks)
        elif item.named:
            parser.add_object(item.name, item.default, item.about)
        elif item.name in options:
            continue
        elif not item.choice and item.hint is bool and item.default is False:
            parser.add_switch(item.name, item.about)
        else:
            parser.add(item.name, flag_type(item.hint), None if item.needed else item.default, item.about,
                       group=groups.get(item.group), need=lacks if item.needed else "")  # fmt: skip
    parser.add_switch("quiet", "Warnings only, no progress", short="q")
    parser.add_switch("verbose", "Tell more", short="v")
    parser.add("log_format", Literal["text", "json"], "text", "What comes on stderr: text, or one JSON object a line")
    return parser


def _is_word(item: Parameter) -> bool:
    """True if it is typed without a flag; a folder to write to has one, as people are used to."""
    return item.positional and item.needed and item.name != "output_folder"


def _about(function: Callable[..., Any]) -> str:
    told = docstring_parser.parse(inspect.getdoc(function) or "")
    return "\n\n".join(part for part in (told.short_description, told.long_description) if part)


def _find(verbs: Sequence[Verb], words: list[str]) -> tuple[Verb, list[str]]:
    """The verb, which may have two words such as `bench noise`, and what follows it."""
    names = {verb.name: verb for verb in verbs}
    word = words[0]
    for count in (2, 1):
        if (name := " ".join(words[:count])) in names:
            return names[name], words[count:]
    if word.startswith("-"):
        raise UsageError(
            f"{word} stands before the verb: write `noisycorr VERB {word} ...` with one of {', '.join(names)}."
        )
    if seconds := [name.split()[1] for name in names if name.startswith(f"{word} ")]:
        given = repr(words[1]) if len(words) > 1 else "nothing"
        raise UsageError(f"after {word} comes {' or '.join(seconds)}, but {given} was given.")
    near = difflib.get_close_matches(word, names, 1)
    raise UsageError(
        f"{word!r} is not a verb; " + (f"did you mean {near[0]}?" if near else f"expected one of {', '.join(names)}.")
    )


def _help(verbs: Sequence[Verb]) -> str:
    width = max(len(verb.name) for verb in verbs)
    lines = ["usage: noisycorr VERB ...", "", ABOUT, "", "verbs:"]
    for verb in verbs:
        lines.append(textwrap.fill(verb.summary(), 100, initial_indent=f"  {verb.name:{width}s}  ",
                                   subsequent_indent=" " * (width + 4)))  # fmt: skip
    lines += ["", "`noisycorr VERB --help` lists the options of a verb; in their names - and _ are the same."]
    lines += ["Exit status: 0 done, 1 failed, 2 bad usage.", "", "for example:"]
    lines += ["  noisycorr clean sample --output_folder out", "  noisycorr decide out --precision 0.95"]
    return "\n".join(lines) + "\n"


def _failure(error: OSError) -> str:
    """What to tell about a failed system call."""
    place = f" ({error.filename})" if error.filename else ""
    if error.errno in FULL:
        return f"the disk is full{place}: free space and run the same command again, what was finished is kept."
    if isinstance(error, FileNotFoundError) and error.errno is None:  # so the reader of tables says it
        return f"{error} is gone: put it back, or start anew with --overwrite."
    reason = error.strerror or str(error) or type(error).__name__
    return f"{reason}{place}: when that is solved, the same command continues; what was finished is kept."


def _complain(message: str) -> None:
    if os.environ.get("RANK", "0") == "0":  # one process speaks for all
        line = " ".join(message.split())
        if console.is_json():
            console.fail(line)
            return
        print(f"noisycorr: {line}{'' if line.endswith(('.', '?')) else '.'}", file=sys.stderr)
