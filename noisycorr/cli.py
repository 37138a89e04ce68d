"""`noisycorr VERB ...`: verbs are stages, flags are the fields of the choices. Dashes and underscores are the same.

noisycorr clean sample --output_folder out
noisycorr decide --output_folder out --precision 0.95
"""

from __future__ import annotations

import contextlib
import difflib
import errno
import io
import os
import sys
import textwrap
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from jsonargparse import Namespace

from noisycorr import __version__, console, dist
from noisycorr.flags import Parser, read_words
from noisycorr.lock import locked
from noisycorr.pairs import UsageError
from noisycorr.verbs import VERBS, Verb

ABOUT = "Which image-text pairs are wrong, how sure we are, and a cleaned set with every decision explained."
READING = ("explain", "status")  # verbs that write nothing into their folder
FULL = (errno.ENOSPC, errno.EDQUOT)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb. Exit status: 0 done, 1 failed, 2 bad usage."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        return _run(words)
    except UsageError as error:
        _complain(str(error))
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
        _complain(str(error))
        return 1
    except KeyboardInterrupt:
        _complain("interrupted; the same command continues.")
        return 1


def _run(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(_help(), end="")
        return 0 if words else 2
    if words[0] == "--version":
        print(f"noisycorr {__version__}")
        return 0
    verb, words = _find(words)
    parser = make_parser(verb)
    if {"-h", "--help"} & set(_before_dashes(words)):
        parser.print_help()
        return 0
    given = read_words(parser, words)
    if given.quiet and given.verbose:
        raise UsageError("--quiet and --verbose exclude each other: give one of them.")
    for name in ("TRANSFORMERS_VERBOSITY", "DATASETS_VERBOSITY"):
        os.environ.setdefault(name, "info" if given.verbose else "error")
    console.set_up(quiet=given.quiet, verbose=given.verbose, log_format=given.log_format)
    if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal that lacks a letter of a caption is no failure
        sys.stdout.reconfigure(errors="backslashreplace")
    if verb.parallel or dist.is_main():
        with _lock(verb, given):
            verb.run(given)
    dist.leave()
    return 0


def make_parser(verb: type[Verb]) -> Parser:
    """The parser of one verb."""
    parser = Parser(verb.name, verb.usage, _about(verb))
    verb.flags(parser)
    parser.add_switch("quiet", "Warnings only, no progress", short="q")
    parser.add_switch("verbose", "Tell more", short="v")
    parser.add("log_format", Literal["text", "json"], "text", "What comes on stderr: text, or one JSON object a line")
    return parser


def _lock(verb: type[Verb], given: Namespace) -> contextlib.AbstractContextManager[None]:
    """Nobody else writes the folder meanwhile; one process locks for all of its group."""
    folder = given.get("output_folder")
    if not folder or verb.name in READING or not dist.is_main():
        return contextlib.nullcontext()
    return locked(Path(folder), verb.name)


def _find(words: list[str]) -> tuple[type[Verb], list[str]]:
    """The verb, which may have two words such as `bench noise`, and what follows it."""
    names = {verb.name: verb for verb in VERBS}
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


def _help() -> str:
    width = max(len(verb.name) for verb in VERBS)
    lines = ["usage: noisycorr VERB ...", "", ABOUT, "", "verbs:"]
    for verb in VERBS:
        indent = " " * (width + 4)
        lines.append(
            textwrap.fill(
                _about(verb).split("\n")[0], 100, initial_indent=f"  {verb.name:{width}s}  ", subsequent_indent=indent
            )
        )
    lines += ["", "`noisycorr VERB --help` lists the options of a verb; in their names - and _ are the same."]
    lines += ["Exit status: 0 done, 1 failed, 2 bad usage.", "", "for example:"]
    lines += ["  noisycorr clean sample --output_folder out", "  noisycorr decide --output_folder out --precision 0.95"]
    return "\n".join(lines) + "\n"


def _about(verb: type[Verb]) -> str:
    return textwrap.dedent("    " + (verb.__doc__ or "")).strip()


def _before_dashes(words: list[str]) -> list[str]:
    return words[: words.index("--")] if "--" in words else words


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


if __name__ == "__main__":
    sys.exit(main())
