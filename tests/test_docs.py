"""What the documents say holds: their blocks run on small data, their links lead somewhere, tables are complete."""

from __future__ import annotations

import importlib
import inspect
import json
import re
import shlex
import shutil
import tarfile
from pathlib import Path
from types import ModuleType

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from pictures import COLOURS, write_pictures
from recaption_run import write_source
from region_data import SIZES, write_regions
from tiny_checkpoints import write_open_clip

import noisycorr as nc
from noisycorr.__main__ import main

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")] + sorted(DOCS.glob("*.md"))
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!http)([^)#\s]+)(#[^)\s]*)?\)")
SMALL = {"clean": ["--clip_model", "tiny"], "train": ["--batch_size", "12", "--warmup", "2", "--workers", "0"]}
SHARDS = "shards/{00000..00099}.tar"


def blocks(page: Path) -> list[tuple[str, str]]:
    """Language and text of each block."""
    return BLOCK.findall(page.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with everything that the pages name, where their commands run one after the other."""
    folder = tmp_path_factory.mktemp("docs")
    for name, seed, count in (("pairs", 0, 48), ("others", 5, 48), ("sample", 7, 120)):
        csv = write_pictures(folder / name, count, seed=seed)
        lines = csv.read_text().splitlines()
        rows = [line.replace("images/", f"{name}/images/") for line in lines[1:]]
        rows = [f"{row},{next(colour for colour in COLOURS if colour in row)}" for row in rows]
        (folder / f"{name}.csv").write_text("\n".join([lines[0] + ",colour", *rows]) + "\n")
    (folder / "classes.txt").write_text("\n".join(COLOURS) + "\n")
    (folder / "shards").mkdir()
    with tarfile.open(folder / "shards" / "00000.tar", "w") as tar:
        for image in sorted((folder / "pairs" / "images").glob("*.png")):
            (folder / "shards" / f"{image.stem}.txt").write_text(f"a square number {image.stem}")
            tar.add(image, image.name)
            tar.add(folder / "shards" / f"{image.stem}.txt", f"{image.stem}.txt")
    write_regions(folder / "f30k_precomp", per_image=2)
    order = np.arange(2 * SIZES["train"])
    order[:10] = np.roll(order[:10], 2)
    np.save(folder / "noise.npy", order // 2)
    write_open_clip(folder / "tiny")
    return folder


@pytest.fixture
def here(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the folder for one page, as the working directory: pages use the same names for what they make."""
    copy = Path(shutil.copytree(place, tmp_path / "here"))
    monkeypatch.chdir(copy)
    monkeypatch.syspath_prepend(copy)  # a page writes a module and imports it
    return copy


def run_line(line: str, folder: Path) -> None:
    """One command, with a small encoder in place of the large one, and less of everything."""
    words = shlex.split(line, comments=True)
    assert words.pop(0) == "noisycorr", f"the page has a command that is not run: {line}"
    words = [f"open_clip:local-dir:{folder}/tiny/local" if "laion2b" in word else word for word in words]
    words = ["1" if words[at - 1] == "--epochs" and "whole" in words else word for at, word in enumerate(words)]
    words = ["sample.csv" if word == "sample" else word.replace(SHARDS, "shards/00000.tar") for word in words]
    more = SMALL.get(words[0], [])
    if "--region" in words:
        more = ["--word_dim", "12", "--sim_dim", "8", "--embed_dim", "12", "--batch_size", "10", "--warmup", "2"]
    if words[0] == "train" and "--config" in words:
        more = []
    if "--clip_model" in words:
        more = [word for word in more if word not in ("--clip_model", "tiny")]
    assert main([*words, *more, "-q"]) == 0, line


def test_every_block_of_the_page_on_training_runs(here: Path, capsys: pytest.CaptureFixture[str]):
    page = DOCS / "training.md"
    kinds = [kind for kind, _ in blocks(page)]
    assert kinds.count("bash") >= 5 and kinds.count("python") >= 3 and set(kinds) == {"bash", "python"}
    for kind, text in blocks(page):
        if kind == "bash":
            for line in text.splitlines():
                run_line(line, here)
        elif named := re.match(r"# (\w+\.py)\n", text):
            (here / named[1]).write_text(text, encoding="utf-8")
        else:
            exec(compile(text, str(page), "exec"), {})
    assert "torch.Size([1," in capsys.readouterr().out


def test_the_worked_example_is_short():
    lines = [line for _, text in blocks(DOCS / "training.md")[:2] for line in text.splitlines() if line.strip()]
    assert len(lines) < 10


def test_every_block_of_the_readme_runs(here: Path, capsys: pytest.CaptureFixture[str]):
    readme = blocks(ROOT / "README.md")
    for kind, text in readme:
        if kind == "python":
            assert 'nc.clean("sample")' in text
            exec(compile(text.replace('"sample"', '"sample.csv", clip_model="tiny"'), "README.md", "exec"), {})
            continue
        for line in text.splitlines():
            if line.startswith("bash scripts/"):
                assert (ROOT / line.split()[1]).is_file()
            elif not line.startswith("pip install"):
                run_line(line, here)
    assert "120 pairs in" in capsys.readouterr().out and list((here / "cleaned").glob("*.tar"))
    assert [kind for kind, _ in readme].index("python") < [text[:9] for _, text in readme].index("noisycorr")
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 110


@pytest.mark.parametrize("page", ["api.md", "ledger.md"])
def test_the_python_of_the_page_runs(page: str, here: Path):
    names: dict[str, object] = {"__name__": "docs"}
    nc.clean("pairs.csv", "out", clip_model="tiny")  # what `api.md` does first is then done already
    for kind, text in blocks(DOCS / page):
        if kind == "python":
            small = text.replace('nc.clean("pairs.csv", "out")', 'nc.clean("pairs.csv", "out", clip_model="tiny")')
            exec(compile(small, page, "exec"), names)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files_and_headings(page: Path):
    for target, anchor in LINK.findall(page.read_text(encoding="utf-8")):
        path = (page.parent / target).resolve()
        assert path.exists(), f"{page.name} links to {target}, which is not there"
        if anchor and path.suffix == ".md":
            headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
            slugs = {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings}
            assert anchor[1:] in slugs, f"{page.name} links to {target}{anchor}"


def named_columns() -> set[str]:
    """The columns that the page of the ledger has a row for."""
    text = (DOCS / "ledger.md").read_text(encoding="utf-8")
    cells = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `")]
    return {name for cell in cells for name in re.findall(r"`([^`]+)`", cell)}


def test_every_column_of_a_ledger_is_explained(tmp_path: Path, place: Path):
    run = nc.clean(str(write_source(tmp_path / "source", 240)), tmp_path / "run", align="trained")
    assert main(["recaption", str(run.folder), "-q"]) == 0
    columns = pq.read_schema(tmp_path / "run" / "ledger" / "00000.parquet").names
    assert len(columns) > 35 and "text_rectified" in columns and "score_trained_text_margin" in columns
    assert set(columns) <= named_columns()

    tiny = nc.clean(str(place / "pairs.csv"), tmp_path / "tiny", clip_model="tiny")
    always = pq.read_schema(tiny.folder / "ledger" / "00000.parquet").names
    assert set(always) <= named_columns() and {"p_clean", "sample_weight", "verdict"} <= set(always)


def test_every_column_of_an_audit_is_explained(tmp_path: Path, place: Path):
    words = ["audit", str(place / "pairs.csv"), "--classes", str(place / "classes.txt"), "--label_col", "colour"]
    assert main([*words, "--output_folder", str(tmp_path / "audit"), "--clip_model", "tiny", "-q"]) == 0
    columns = pq.read_schema(tmp_path / "audit" / "ledger" / "00000.parquet").names
    unknown = {name for name in columns if not name.startswith("score_")} - named_columns()
    assert "label_proposed" in columns and not unknown


def public_names() -> list[str]:
    return [name for name in nc.__all__ if name != "__version__"]


def test_every_public_name_is_documented():
    page = (DOCS / "api.md").read_text(encoding="utf-8")
    for name in public_names():
        value = getattr(nc, name)
        assert (inspect.getdoc(value) or "").strip(), f"noisycorr.{name} has no docstring"
        assert re.search(rf"\b(nc\.)?{name}\b", page), f"docs/api.md does not name {name}"


def test_the_reference_has_every_public_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("pdoc", reason='pdoc writes the reference: pip install "noisycorr[docs]"')
    bound = dict(vars(nc))
    monkeypatch.syspath_prepend(DOCS)
    try:
        importlib.import_module("reference").write(tmp_path)
    finally:
        vars(nc).update(bound)
    front = (tmp_path / "noisycorr.html").read_text(encoding="utf-8")
    for name in public_names():
        value = getattr(nc, name)
        if isinstance(value, ModuleType) and not callable(value):
            assert (tmp_path / f"{value.__name__.replace('.', '/')}.html").is_file()
        else:
            assert f'id="{name}"' in front, name


@pytest.mark.parametrize("name", ["clean_and_look", "train_on_cleaned"])
def test_notebooks_run(name: str, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch):
    """The code cells are executed in order without Jupyter, by the script that stores their outputs."""
    monkeypatch.syspath_prepend(DOCS)
    folder = tmp_path_factory.getbasetemp() / "notebooks"  # one folder: the second finds what the first cleaned
    folder.mkdir(exist_ok=True)
    monkeypatch.chdir(folder)
    stored = json.loads((DOCS / f"{name}.ipynb").read_text(encoding="utf-8"))
    ran = importlib.import_module("run_notebooks").execute(DOCS / f"{name}.ipynb")
    shapes = [[output["output_type"] for output in cell.get("outputs", [])] for cell in ran["cells"]]
    assert shapes == [[output["output_type"] for output in cell.get("outputs", [])] for cell in stored["cells"]]
    assert (DOCS / f"{name}.ipynb").stat().st_size < 200_000


def test_the_citation_is_of_this_version():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert cited["version"] == nc.__version__ and cited["license"] == "Apache-2.0"
