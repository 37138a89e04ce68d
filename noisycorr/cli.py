"""`noisycorr VERB ...`: verbs are stages, flags are the fields of the choices. Dashes and underscores are the same.

    noisycorr clean sample --output_folder out
    noisycorr decide --output_folder out --precision 0.95
"""

from __future__ import annotations

import dataclasses
import logging
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser, Namespace

from noisycorr import __version__
from noisycorr.pairs import UsageError

PARTS = ("source", "embed", "score", "duplicates", "image_limits", "text_limits", "decide")
SKIPPED = {"source": {"path"}, "duplicates": {"neighbors", "seed"}}  # one flag must not mean two things


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb. Exit status: 0 done, 1 failed, 2 bad usage."""
    words = [_underscores(word) for word in (sys.argv[1:] if arguments is None else arguments)]
    try:
        parser, runners = _parser()
        _refuse_doubles(words)
        given = parser.parse_args(words)
        if given.verb is None:
            parser.print_help()
            return 2
        _quiet_libraries()
        runners[given.verb](given[given.verb])
        return 0
    except UsageError as error:
        print(f"noisycorr: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            return 1
        place = f" ({error.filename})" if error.filename else ""
        print(f"noisycorr: {error.strerror or error}{place}. What was finished is kept; the same command continues.",
              file=sys.stderr)  # fmt: skip
        return 1
    except KeyboardInterrupt:
        print("noisycorr: interrupted; the same command continues.", file=sys.stderr)
        return 1


def _parser() -> tuple[ArgumentParser, dict[str, Any]]:
    from noisycorr import verbs

    parser = ArgumentParser(prog="noisycorr", description="Which image-text pairs are wrong, how sure we are, and a "
                            "cleaned set with every decision explained.", version=__version__)  # fmt: skip
    commands = parser.add_subcommands(required=False, dest="verb", metavar="VERB")
    runners = {}
    for verb in verbs.VERBS:
        sub = ArgumentParser(description=verb.__doc__)
        verb.flags(sub)
        name = verb.__name__.lower()
        commands.add_subcommand(name, sub, help=(verb.__doc__ or "").splitlines()[0])
        runners[name] = verb.run
    return parser, runners


def add_choice(parser: ArgumentParser, choice: type, *, skip: set[str] | None = None) -> None:
    """Flags for the fields of a choice, flat, with its docstring as help."""
    parser.add_class_arguments(choice, skip=skip or set())


def pick(given: Namespace, choice: type) -> dict[str, Any]:
    """The fields of a choice among parsed flags."""
    return {f.name: given[f.name] for f in dataclasses.fields(choice) if f.name in given}


def _underscores(word: str) -> str:
    if not word.startswith("--"):
        return word
    name, sign, value = word.partition("=")
    return "--" + name[2:].replace("-", "_") + sign + value


class _Strict(yaml.SafeLoader):
    """YAML that refuses a key that stands twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if key.value in seen:
                raise UsageError(f"key {key.value!r} stands twice (line {key.start_mark.line + 1}): keep one of them.")
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def read_config(path: Path) -> dict[str, Any]:
    """A YAML mapping; UsageError if it is no file, no mapping, or names a key twice."""
    if not path.is_file():
        raise UsageError(f"config {path} is not a file: give the path of a YAML file.")
    try:
        body = yaml.load(path.read_text(encoding="utf-8"), _Strict)
    except yaml.YAMLError as error:
        raise UsageError(f"config {path} is not valid YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(body, dict):
        raise UsageError(f"config {path} holds {type(body).__name__}, expected keys with values.")
    return body


def _refuse_doubles(words: Sequence[str]) -> None:
    """Check config files for double keys before the parser, which would keep the last one silently, sees them."""
    for place, word in enumerate(words):
        name, sign, value = word.partition("=")
        if name == "--config":
            read_config(Path(value if sign else (words[place + 1] if place + 1 < len(words) else "")))


def _quiet_libraries() -> None:
    """Our progress and our messages only: libraries tell us things that a user can do nothing about."""
    logging.getLogger("transformers").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning, module="(transformers|timm|open_clip|torch).*")
    try:
        import transformers

        transformers.utils.logging.disable_progress_bar()
        transformers.utils.logging.set_verbosity_error()
    except (ImportError, AttributeError):
        pass
    from datasets.utils import logging as datasets_logging

    datasets_logging.set_verbosity_error()


if __name__ == "__main__":
    sys.exit(main())
