"""`import noisycorr as nc`: light, complete, and the same job as the command line."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path

import pytest
from sources import parquet, sample_rows

import noisycorr as nc
from noisycorr.__main__ import VERBS, main
from noisycorr.clean.result import CleanRun
from noisycorr.runtime.command import Verb
from noisycorr.runtime.errors import UsageError


def python(code: str) -> str:
    """What a new process prints."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_importing_it_is_cheap():
    told = python(
        "import time; start = time.process_time(); import noisycorr, sys\n"
        "print(time.process_time() - start, [n for n in ('numpy', 'pyarrow', 'torch', 'yaml') if n in sys.modules])"
    )
    seconds, heavy = told.split(" ", 1)
    assert float(seconds) < 0.3 and heavy == "[]"


def test_every_name_is_there_and_documented():
    for name in nc.__all__:
        value = getattr(nc, name)
        assert name == "__version__" or inspect.getdoc(value), name
    assert set(nc.__all__) <= set(dir(nc))
    with pytest.raises(AttributeError, match="no attribute 'cleen'"):
        nc.cleen  # noqa: B018


@pytest.mark.parametrize(
    "first", ["import noisycorr.clean.ledger as ledger", "nc.clean", "from noisycorr.clean.verbs import clean"]
)
def test_a_package_is_also_the_function_of_its_name(first: str):
    told = python(
        f"import noisycorr as nc\n{first}\nimport noisycorr.clean.ledger as ledger\n"
        "from noisycorr.clean import decide\nimport inspect\n"
        "print(callable(nc.clean), 'precision' in inspect.signature(nc.clean).parameters, ledger.__name__,"
        " decide.__name__, nc.clean.__doc__[:3])"
    )
    assert told == "True True noisycorr.clean.ledger noisycorr.clean.decide Say"


def test_every_verb_can_be_called_from_python():
    reachable = {inspect.unwrap(getattr(nc, name)) for name in nc.__all__ if callable(getattr(nc, name))}
    for verb in VERBS:
        if isinstance(verb, Verb):
            function = inspect.unwrap(verb.function())
            public = "." in verb.calls.partition(":")[2] or verb.calls.startswith("noisycorr.__main__:")
            assert public or function in reachable, verb.name
    assert {inspect.unwrap(getattr(nc, name)) for name in ("run", "report")} <= reachable


def test_python_and_the_command_line_do_the_same_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (source,) = parquet(tmp_path / "source", sample_rows(40))
    written = []
    for way in ("python", "words"):
        (tmp_path / way).mkdir()
        monkeypatch.chdir(tmp_path / way)
        if way == "python":
            run = nc.clean(source, "out", clip_model="tiny", workers=1, precision=0.9)
            assert isinstance(run, CleanRun) and "pairs in" in repr(run) and repr(run).startswith("CleanRun('out')")
        else:
            words = ["--clip_model", "tiny", "--workers", "1", "--precision", "0.9"]
            assert main(["clean", source, "--output_folder", "out", *words]) == 0
        files = [
            Path("out/config.yaml"),
            Path("out/report.html"),
            Path("out/report.json"),
            *Path("out").rglob("*.parquet"),
        ]
        written.append({str(file): file.read_bytes() for file in files})
    assert written[0] == written[1]
    again = nc.open_run("out")
    assert isinstance(again, CleanRun) and again.summary == run.summary
    assert (tmp_path / "words" / "out" / "report.html").is_file()


def test_a_run_without_a_folder_is_named_after_its_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (source,) = parquet(tmp_path / "Some pairs", sample_rows(20))
    run = nc.clean(source, clip_model="tiny", workers=1)
    assert run.folder == Path("noisycorr_out") / Path(source).name.lower().replace(" ", "_")


def test_what_is_no_run_or_no_argument_is_one_sentence(tmp_path: Path):
    with pytest.raises(UsageError, match="is not a run folder"):
        nc.open_run(tmp_path)
    with pytest.raises(ValueError, match="did you mean `precision`"):
        nc.clean("sample", tmp_path / "out", precison=0.9)
    with pytest.raises(ValueError, match=r"`precision` is 2\.0, expected a number from 0 to 1"):
        nc.clean("sample", tmp_path / "out", precision=2)
    with pytest.raises(UsageError, match="the source is a int, expected a path"):
        nc.clean(3)
    assert not (tmp_path / "out").exists()
