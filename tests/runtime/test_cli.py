"""The command line: help, messages, config files, exit status. Help and messages are compared with stored ones.

`NOISYCORR_SNAPSHOTS=write pytest tests/test_cli.py` stores them anew.
"""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from noisycorr.__main__ import VERBS, main
from noisycorr.clean.plan import Plan
from noisycorr.runtime.command import Verb
from noisycorr.runtime.errors import UsageError
from noisycorr.runtime.signature import parameters

SNAPSHOTS = Path(__file__).parents[1] / "snapshots"
NAMES = [verb.name for verb in VERBS]
HEAVY = ("torch", "transformers", "datasets", "accelerate", "open_clip", "timm", "torchvision", "matplotlib")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in, and a terminal of 100 columns."""
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def compare(name: str, text: str) -> None:
    """The text is the stored one; how lines are broken does not matter."""
    path = SNAPSHOTS / f"{name}.txt"
    if os.environ.get("NOISYCORR_SNAPSHOTS") == "write":
        path.write_text(text, encoding="utf-8")
    now, stored = (re.sub(r"-\s+", "-", body).split() for body in (text, path.read_text(encoding="utf-8")))
    assert now == stored, f"{path} holds another text"


def complaint(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that bad usage leaves on stderr."""
    assert main(words) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("noisycorr: ") and shown.err.endswith((".\n", "?\n"))
    assert shown.err.count("\n") == 1, "one sentence on one line"
    return shown.err.removeprefix("noisycorr: ").rstrip("\n")


# ---- help


@pytest.mark.parametrize("name", NAMES)
def test_help_of_a_verb(name: str, capsys: pytest.CaptureFixture[str]):
    assert main([*name.split(), "--help"]) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    compare(f"help_{name.replace(' ', '_')}", shown.out)


def test_help_of_all(capsys: pytest.CaptureFixture[str]):
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    compare("help", text)
    assert all(name in text for name in NAMES)
    assert main([]) == 2
    assert capsys.readouterr().out == text
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("noisycorr 0.")


@pytest.mark.parametrize("verb", [verb for verb in VERBS if isinstance(verb, Verb)], ids=lambda verb: verb.name)
def test_help_shows_every_parameter_with_its_default(verb: Verb, capsys: pytest.CaptureFixture[str]):
    main([*verb.name.split(), "--help"])
    text = " ".join(capsys.readouterr().out.split())
    for item in parameters(verb.function()):
        assert item.about, f"{item.name} has no description"
        if item.needed:
            continue
        assert f"--{item.name} " in text, item.name
        if item.hint is not bool or item.choice:
            shown = "none" if item.default is None else item.default
            shown = str(shown).lower() if isinstance(shown, bool) else shown
            start = text.index(f"--{item.name} ")
            squeezed = text[start : start + 2000].replace(" ", "")  # long words are broken anywhere
            assert f"default: {shown})".replace(" ", "") in squeezed, item.name


def test_help_loads_nothing_heavy():
    code = f"""
import sys
from noisycorr.__main__ import VERBS, main
main(["--help"])
light = [name for name in ("scipy", "sklearn", "faiss", *{HEAVY!r}) if name in sys.modules]
main(["clean", "--help"])
print("LOADED", light, [name for name in {HEAVY!r} if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "LOADED [] []"


def test_the_module_is_the_command():
    done = subprocess.run([sys.executable, "-m", "noisycorr", "inject", "nowhere"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("noisycorr: --output_folder is missing")


# ---- messages


CONFIGS = {
    "double.yaml": "path: a\nseed: 1\nseed: 2\n",
    "dashes.yaml": "path: a\nbatch-size: 1\nbatch_size: 2\n",
    "unknown.yaml": "path: a\nbatch_sise: 3\n",
    "nested.yaml": "path: a\ndecide: {precision: 0.9}\n",
    "type.yaml": "path: a\noutput_folder: o\nbatch_size: many\n",
    "null.yaml": "path: a\noutput_folder: o\ncalibration: null\n",
    "switch.yaml": "path: a\noutput_folder: o\noverwrite: perhaps\n",
    "list.yaml": "- path\n",
    "empty.yaml": "",
    "broken.yaml": "path: [a\n",
    "inner.yaml": "path: a\ncaption_col: {x: 1, x: 2}\n",
    "short.yaml": "path: nowhere\n",
}
RUN = ["--output_folder", "out"]
WRONG: list[list[str]] = [
    ["bogus"],
    ["cleen"],
    ["--output_folder", "out"],
    ["clean"],
    ["clean", "nowhere"],
    ["clean", "nowhere", *RUN],
    ["clean", "empty", *RUN],
    ["clean", "other", *RUN],
    ["clean", "bare.csv", *RUN],
    ["clean", "one", "two", *RUN],
    ["clean", "rows.csv", *RUN, "--foo", "3"],
    ["clean", "rows.csv", *RUN, "--batch-sise", "3"],
    ["clean", "rows.csv", *RUN, "--batch_size"],
    ["clean", "rows.csv", *RUN, "--batch_size", "abc"],
    ["clean", "rows.csv", *RUN, "--batch-size", "2.5"],
    ["clean", "rows.csv", *RUN, "--batch_size", "0"],
    ["clean", "rows.csv", *RUN, "--workers", "-1"],
    ["clean", "rows.csv", *RUN, "--threshold", "nan"],
    ["clean", "rows.csv", *RUN, "--threshold", "inf"],
    ["clean", "rows.csv", *RUN, "--precision", "1.5"],
    ["clean", "rows.csv", *RUN, "--precision", "0.9", "--fraction", "0.5"],
    ["clean", "rows.csv", *RUN, "--keeper", "nicest"],
    ["clean", "rows.csv", *RUN, "--align", "always"],
    ["clean", "rows.csv", *RUN, "--keep_issues", "perhaps"],
    ["clean", "rows.csv", *RUN, "--seed", "1", "--seed=2"],
    ["clean", "rows.csv", *RUN, "--overwrite=yes"],
    ["clean", "rows.csv", *RUN, "-q", "-v"],
    ["clean", "rows.csv", *RUN, "--stages", "embed,decode"],
    ["clean", "rows.csv", *RUN, "--stages", "decide", "--overwrite"],
    ["clean", "rows.csv", *RUN, "--stages", "decide"],
    ["clean", "rows.csv", *RUN, "--output_format", "zip"],
    ["clean", "rows.csv", *RUN, "--input_format", "zip"],
    ["clean", "rows.csv", *RUN, "--clip_model", "magic"],
    ["clean", "rows.csv", *RUN, "--caption_col", "legend"],
    ["clean", "rows.csv", *RUN, "--caption_col", "truth_text"],
    ["clean", "rows.csv", *RUN, "--image_root", "nowhere"],
    ["clean", "rows.csv", "--output_folder", "rows.csv"],
    ["clean", "rows.csv", "--output_folder", "rows.csv/out"],
    ["clean", "rows.csv", *RUN, "--config", "nowhere.yaml"],
    *(["clean", *RUN, "--config", name] for name in CONFIGS),
    ["run"],
    ["run", "nowhere.yaml"],
    ["run", "short.yaml"],
    ["run", "unknown.yaml"],
    ["decide", "out"],
    ["decide"],
    ["decide", "empty", "--precision", "x"],
    ["score", "out"],
    ["report"],
    ["report", "out"],
    ["explain", "out"],
    ["explain", "out", "a"],
    ["explain", "out", "a", "--neighbors", "0"],
    ["export", "out"],
    ["export", "out", "--only", "kept"],
    ["evaluate", "out"],
    ["inject", "rows.csv"],
    ["inject", "nowhere", *RUN],
    ["inject", "rows.csv", *RUN, "--noise", "salt"],
    ["inject", "rows.csv", *RUN, "--noise_ratio", "2"],
    ["inject", "rows.csv", "--output_folder", "rows.csv/out"],
]


def test_messages(here: Path, capsys: pytest.CaptureFixture[str]):
    for name, text in CONFIGS.items():
        (here / name).write_text(text, encoding="utf-8")
    (here / "rows.csv").write_text("image_path,caption\na.jpg,a cat\n", encoding="utf-8")
    (here / "bare.csv").write_text("x,y\n1,2\n", encoding="utf-8")
    (here / "empty").mkdir()
    (here / "other").mkdir()
    (here / "other" / "numbers.npy").write_bytes(b"")
    before = sorted(here.rglob("*"))
    lines = []
    for words in WRONG:
        message = complaint(words, capsys)
        lines.append(f"$ noisycorr {' '.join(words)}\n{message.replace(str(here), 'HERE')}\n")
    assert sorted(here.rglob("*")) == before, "bad usage leaves no trace"
    compare("messages", "\n".join(lines))


def test_a_number_may_be_negative_and_a_key_may_look_like_a_flag(here: Path, capsys: pytest.CaptureFixture[str]):
    assert "'out' is not" not in complaint(["decide", "out", "--threshold", "-0.5"], capsys)
    assert "out is not a run folder" in complaint(["explain", "out", "--", "--odd-key"], capsys)


@pytest.mark.parametrize("spelled", [["--output_folder", "out"], ["--output-folder=out"]])
def test_the_former_spelling_of_the_run_folder_works_and_says_so(
    spelled: list[str], capsys: pytest.CaptureFixture[str]
):
    for words in (["decide", *spelled], ["explain", "key", *spelled]):
        assert main(words) == 2
        first, second = capsys.readouterr().err.splitlines()
        assert "--output_folder is the first word now" in first and "out is not a run folder" in second


# ---- values


@pytest.fixture
def plans(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Plan, dict[str, object]]]:
    """What `clean` was asked to do, instead of doing it."""
    seen: list[tuple[Plan, dict[str, object]]] = []
    monkeypatch.setattr(
        "noisycorr.clean.verbs.run_stages", lambda plan, run, **rest: seen.append((plan, {"run": run, **rest}))
    )
    return seen


def test_dashes_are_underscores_and_flags_reach_their_choice(plans: list[tuple[Plan, dict[str, object]]]):
    words = ["clean", "a::b", "--output-folder=x", "--batch-size", "7", "--keep-issues", "--no-margin", "--seed", "3"]
    assert (
        main([*words, "--threshold", "-1e-3", "--keeper", "first", "--near_duplicates", "no", "--text_threshold=1"])
        == 0
    )
    plan, rest = plans[0]
    assert (plan.source.path, plan.embed.batch_size, plan.decide.threshold) == ("a::b", 7, -0.001)
    assert plan.decide.keep_issues and not plan.score.margin and not plan.score.near_duplicates
    assert plan.score.seed == plan.duplicates.seed == 3
    assert (plan.duplicates.keeper, plan.duplicates.text_threshold) == ("first", 1.0)
    assert rest["stages"] == ["embed", "score", "decide", "report"] and rest["overwrite"] is False


@pytest.mark.parametrize("place", ["before", "after"])
def test_flags_win_over_the_config(place: str, here: Path, plans: list[tuple[Plan, dict[str, object]]]):
    config = {"path": "from_file", "output-folder": "o", "batch-size": 3, "precision": 0.9, "keep_issues": True}
    (here / "c.yaml").write_text(yaml.safe_dump({**config, "stages": ["embed", "score"]}), encoding="utf-8")
    flags, given = ["--batch_size", "5", "--no_keep_issues"], ["--config", "c.yaml"]
    words = [*given, *flags] if place == "before" else [*flags, *given]
    assert main(["clean", *words]) == 0
    assert main(["clean", "from_words", *words]) == 0
    first, second = plans[0][0], plans[1][0]
    assert (first.source.path, second.source.path) == ("from_file", "from_words")
    assert (first.embed.batch_size, first.decide.precision, first.decide.keep_issues) == (5, 0.9, False)
    assert plans[0][1]["stages"] == ["embed", "score"]


def test_run_takes_the_keys_of_clean(here: Path, plans: list[tuple[Plan, dict[str, object]]]):
    config = {"path": ["a", "b"], "output_folder": "o", "fraction": 0.25, "stages": ["decide"], "overwrite": False}
    (here / "c.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    assert main(["run", "c.yaml"]) == 0
    assert main(["run", "c.yaml", "--overwrite"]) == 0
    assert (plans[0][0].source.path, plans[0][0].decide.fraction) == ("a::b", 0.25)
    assert [rest["stages"] for _, rest in plans] == [["decide"], ["decide"]]
    assert [rest["overwrite"] for _, rest in plans] == [False, True]


# ---- failures


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "the disk is full: free space and run the same command"),
        (PermissionError(errno.EACCES, "Permission denied", "out/pairs"), "Permission denied (out/pairs): when"),
        (FileNotFoundError("out/pairs/00000.parquet"), "out/pairs/00000.parquet is gone: put it back, or start anew"),
        (MemoryError(), "there is not enough memory"),
        (KeyboardInterrupt(), "interrupted; the same command continues"),
    ],
)
def test_failures_end_with_one_sentence(
    error: BaseException, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("noisycorr.clean.verbs.run_stages", fail)
    assert main(["clean", "sample", *RUN]) == 1
    shown = capsys.readouterr()
    assert shown.err.startswith(f"noisycorr: {said}") and shown.err.count("\n") == 1


def test_an_error_of_ours_shows_where_it_is(monkeypatch: pytest.MonkeyPatch):
    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("noisycorr.clean.verbs.run_stages", fail)
    with pytest.raises(ZeroDivisionError):  # the interpreter prints the traceback and exits with 1
        main(["clean", "sample", *RUN])


def test_only_one_process_complains(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setenv("RANK", "1")
    assert main(["bogus"]) == 2
    assert capsys.readouterr().err == ""


def test_usage_errors_raised_deep_below_come_out_as_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def fail(*_: object, **__: object) -> None:
        raise UsageError("the encoder is somewhere else.")

    monkeypatch.setattr("noisycorr.clean.verbs.run_stages", fail)
    assert complaint(["clean", "sample", *RUN], capsys) == "the encoder is somewhere else."
