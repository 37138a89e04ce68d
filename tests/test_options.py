"""Every option of every verb changes something: each is read somewhere, and for the main verbs it changes the output.

The tables below give each option another value, with what else it needs to matter. An option that is about speed, or
only says where things are, stands in `NO_EFFECT` with its reason. An option that is in neither fails the test.
"""

from __future__ import annotations

import ast
import io
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pictures import COLOURS, PLACES
from PIL import Image, ImageEnhance
from sources import write_tar
from test_floors import FILES
from test_prompt import make_place

import noisycorr as nc
from noisycorr.__main__ import VERBS
from noisycorr.clean import sources
from noisycorr.runtime import console
from noisycorr.runtime.command import Verb
from noisycorr.runtime.folder import write_json
from noisycorr.runtime.signature import parameters

ROWS = [verb for verb in VERBS if isinstance(verb, Verb)]
N = 132  # heads are learned on 100 pairs and more
Options = dict[str, Any]
Trial = tuple[Any, Options]  # another value of an option, and what else is given in both runs

# ---- read somewhere


def _reads(tree: ast.AST) -> Iterator[str]:
    """Names that a file reads: attributes and variables, but not where a choice checks its own field, or a value is
    only handed on under its own name."""
    skipped: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.name == "__post_init__":
            skipped |= {id(inner) for inner in ast.walk(node)}
        if isinstance(node, ast.keyword) and node.arg == getattr(node.value, "id", None):
            skipped.add(id(node.value))
    for node in ast.walk(tree):
        if id(node) in skipped or not isinstance(getattr(node, "ctx", None), ast.Load):
            continue
        if isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.Name):
            yield node.id


READ = {name for path in FILES for name in _reads(ast.parse(path.read_text(encoding="utf-8")))}


@pytest.mark.parametrize("verb", ROWS, ids=lambda verb: verb.name)
def test_every_option_is_read_somewhere(verb: Verb) -> None:
    idle = [item.name for item in parameters(verb.function()) if item.name not in READ]
    assert not idle, f"nothing in the package reads {idle}: wire these options of {verb.name}, or drop them"


def test_the_check_sees_an_option_that_only_its_own_choice_looks_at() -> None:
    source = """
class Choice:
    used: int = 1
    idle: int = 1
    def __post_init__(self):
        if self.idle < 0: raise ValueError
def verb(idle, used):
    work(idle=idle, used=used + 1)
"""
    assert set(_reads(ast.parse(source))) >= {"used"} and "idle" not in set(_reads(ast.parse(source)))


# ---- the made pairs


def _picture(rng: np.random.Generator, colour: str, place: str) -> Image.Image:
    pixels = rng.integers(0, 256, (40, 48, 3)).astype(np.uint8)
    left, top, right, bottom = (round(x * side) for x, side in zip(PLACES[place], (48, 40, 48, 40)))
    pixels[top:bottom, left:right] = COLOURS[colour]
    return Image.fromarray(pixels)


def _png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def made_pairs() -> list[dict[str, Any]]:
    """Pairs that can be learned, among them wrong ones, duplicates, one text on many images, and odd texts."""
    rng = np.random.default_rng(0)
    kinds = [(colour, place) for colour in COLOURS for place in PLACES]
    rows: list[dict[str, Any]] = []
    last = _picture(rng, "red", "left")
    for row in range(N):
        colour, place = kinds[row % len(kinds)]
        image, text = _picture(rng, colour, place), f"a {colour} square on the {place} seen by witness {row}"
        if row % 10 == 3:  # wrong
            text = f"a {kinds[(row + 5) % 12][0]} square on the {kinds[(row + 4) % 12][1]} seen by witness {row}"
        if row % 11 == 7:
            text = "welcome to our shop"
        if row % 30 == 12:  # near-duplicates of the row before, one of them larger
            image = ImageEnhance.Brightness(last).enhance(1.02).resize((96, 80))
            text = rows[-1]["text"]
        if row == 20:
            text += " www.example.org <b>bold</b> 1234567 \x01"
        last = image
        rows.append({"key": f"k{row}", "number": f"n{row}", "image": _png(image), "text": text, "title": f"title {row}",
                     "picture": _png(image.rotate(90)), "link": f"https://example.org/{row}.png"})  # fmt: skip
    return rows


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The made pairs as sources of several kinds, and files that options name."""
    place = tmp_path_factory.mktemp("options")
    rows = made_pairs()
    pq.write_table(pa.Table.from_pylist(rows), place / "pairs.parquet")
    few = rows[:12]
    pq.write_table(pa.Table.from_pylist(few), place / "few.parquet")
    members = []
    for row in few:
        parts = {"png": row["image"], "webp": row["picture"], "txt": row["text"].encode(), "alt": row["title"].encode()}
        members += [(f"{row['key']}.{suffix}", data) for suffix, data in parts.items()]
    write_tar(place / "few.tar", members)
    for folder, column in (("here", "image"), ("there", "picture")):
        (place / folder).mkdir()
        for row in few:
            (place / folder / f"{row['key']}.png").write_bytes(row[column])
    lines = ["key,filepath,text", *(f"{row['key']},{row['key']}.png,{row['text'][:20]}" for row in few)]
    (place / "here" / "few.csv").write_text("\n".join(lines) + "\n")
    (place / "labels.csv").write_text("key,label\nk3,0\nk13,0\nk0,1\n")
    np.save(place / "noise.npy", np.random.default_rng(0).permutation(12))
    return place


@pytest.fixture(scope="module", autouse=True)
def quiet() -> Iterator[None]:
    with console.silent():
        yield


LEFT_OUT = ("config.yaml", "provenance.json", "metrics.jsonl", "report.json", "report.html", "stages", "run.lock",
            "rounds", "noise.json")  # fmt: skip


def outputs(folder: Path) -> dict[str, bytes]:
    """Files of a folder, without those that repeat the settings."""
    files = {path.relative_to(folder): path for path in folder.rglob("*") if path.is_file()}
    return {str(name): path.read_bytes() for name, path in files.items() if name.parts[0] not in LEFT_OUT}


def changes(trials: Mapping[str, Trial], run: Callable[[Options], dict[str, bytes]]) -> list[str]:
    """Options whose other value changes nothing; runs that differ in nothing but the option are compared."""
    before: dict[str, dict[str, bytes]] = {}
    idle = []
    for option, (value, extra) in trials.items():
        known = repr(sorted(extra.items()))
        if known not in before:
            before[known] = run(extra)
        if run(extra | {option: value}) == before[known]:
            idle.append(option)
    return idle


# ---- tables

SCORE: dict[str, Trial] = {
    "align": ("none", {}), "folds": (2, {}), "neighbors": (0, {}), "margin": (False, {}),
    "calibration": ("gaussian", {}), "near_duplicates": (False, {}), "seed": (1, {}),
    "image_threshold": (0.5, {}), "text_threshold": (0.5, {}), "phash_distance": (64, {"phash_threshold": -1.0}),
    "phash_threshold": (-1.0, {"phash_distance": 64}), "keeper": ("largest", {"image_threshold": 0.9}),
    "min_side": (100, {}), "max_aspect": (1.1, {}), "blank_std": (500.0, {}),
    "min_entropy": (9.0, {"min_edges": 900.0}), "min_edges": (900.0, {"min_entropy": 9.0}),
    "min_characters": (60, {}), "max_characters": (5, {}), "url_share": (0.0, {}), "markup_share": (0.0, {}),
    "digit_share": (0.0, {}), "bytes_share": (0.0, {}), "boilerplate_images": (50, {"boilerplate_alikeness": 1.0}),
    "boilerplate_alikeness": (1.0, {}),
}  # fmt: skip
DECIDE: dict[str, Trial] = {
    "labels": ("labels.csv", {}), "p_threshold": (0.99, {}), "precision": (0.999, {}), "fraction": (0.3, {}),
    "threshold": (0.5, {}), "keep_duplicates": (True, {}), "keep_issues": (True, {}), "review_margin": (0.5, {}),
}  # fmt: skip
EMBED: dict[str, Trial] = {
    "model_precision": ("bf16", {}), "store_precision": ("fp32", {}), "max_pixels": (1000, {}), "thumbnail": (16, {}),
    "number_sample_per_shard": (5, {}),
}  # fmt: skip
READING: dict[str, tuple[str, Any, Options]] = {  # with the source
    "input_format": ("here", "files", {}), "image_col": ("few.parquet", "picture", {}),
    "caption_col": ("few.parquet", "title", {}), "url_col": ("few.parquet", "key", {"caption_col": "text"}),
    "id_col": ("few.parquet", "number", {}), "image_root": ("here/few.csv", "there", {}),
    "wds_image_key": ("few.tar", "webp", {}), "wds_caption_key": ("few.tar", "alt", {}),
}  # fmt: skip
EXPORT: dict[str, Trial] = {
    "output_format": ("csv", {}), "only": ("all", {}), "number_sample_per_shard": (7, {}),
    "json_fields": ("p_clean", {}), "texts": ("given", {"only": "all"}),
}  # fmt: skip
INJECT: dict[str, Trial] = {
    "noise": ("missing_text", {}), "noise_ratio": (0.5, {}), "unit": ("image", {"noise_ratio": 0.5}),
    "label_col": ("colour", {"noise": "hard_swap"}), "noise_file": ("noise.npy", {"noise": "noise_file"}),
    "neighbors": (1, {"noise": "hard_swap"}), "seed": (1, {}), "number_sample_per_shard": (5, {}),
}  # fmt: skip
SELECT: Options = {"strategy": "fpl", "per_class": 3}
GUARDED: Options = {"guard": True, "labels": "known.csv", "prompt": "residual", "lr": 0.05, "epochs": 3}
PROMPT: dict[str, Trial] = {
    "labels": ("known.csv", {}), "seen": ("seen.txt", {"labels": "known.csv"}), "class_prior": ("prior.json", {}),
    "prompt": ("residual", {}), "context": ("shared", {}), "prompt_init": ("my red", {}),
    "prompt_tokens": (2, {"prompt_init": "random"}), "depth": ("deep", {"prompt": "visual"}),
    "upt_attention": ("pair", {"prompt": "multimodal"}), "template": ("my {}", {}), "scale": (3.0, {}),
    "strategy": ("fpl", {}), "rounds": (1, {}), "per_class": (2, SELECT), "selector": ("argmax", {}),
    "balance": ("unknown", {}), "posterior": ("prompt", {}), "neighbors": (1, {"posterior": "neighbors"}),
    "threshold": (0.0, {"selector": "threshold", "labels": "known.csv"}), "alpha": (0.1, {"selector": "candidates"}),
    "beta": (0.1, {"selector": "candidates"}), "confidence": (3.0, {}), "decay": (0.1, {"reinit": False}),
    "floor": (0.9, {"decay": 0.1, "reinit": False}), "guard": (True, {}),
    "guard_fit": (1.0, GUARDED | {"guard_agree": 0.0}), "guard_agree": (0.0, GUARDED), "epochs": (3, {}),
    "batch_size": (5, {}), "optimizer": ("sgd", {}), "lr": (0.1, {}), "wd": (0.5, {}),
    "grad_clip_norm": (1e-4, {"optimizer": "sgd"}), "loss": ("mae", {}), "gce_q": (0.1, {"loss": "gce"}),
    "clean": ("neighbors", {"clean_neighbors": 1}),
    "clean_neighbors": (1, {"clean": "neighbors", "labels": "known.csv"}),
    "loss_weights": ("ratio", {"labels": "known.csv"}), "reinit": (False, {}),
    "seed": (1, {"prompt_init": "random"}),
}  # fmt: skip

WHERE = "says where the input is, or where the output goes"
RESUME = "about an earlier run in the folder: the tests of continuing look at it"
ELSEWHERE = "how a source is read is the same for all verbs: it is tried with `clean`"
NO_EFFECT: dict[str, dict[str, str]] = {
    "clean": {
        "source": WHERE, "output_folder": WHERE, "overwrite": RESUME,
        "clip_model": "names the encoder: the tests of encoders look at it",
        "recaption": "joins two capabilities: tests/caption/test_recaption_run.py looks at it",
        "recaption_options": "as recaption",
        "output_format": "the same as `export`, which is tried", "stages": "which of the outputs are made",
        "batch_size": "speed and memory: features are equal up to rounding", "workers": "speed",
        "distributor": "speed", "ray_workers": "speed",
        "target_recall": "speed of the approximate search, which sets of this size do not need",
        "hf_split": "tests/data/test_formats_hf.py looks at it",
    },
    "score": {"target_recall": "speed of the approximate search, which sets of this size do not need"},
    "decide": {},
    "export": {"output_path": WHERE},
    "inject": {"source": WHERE, "output_folder": WHERE, **dict.fromkeys([*READING, "hf_split"], ELSEWHERE)},
    "prompt": {
        "source": WHERE, "output_folder": WHERE, "overwrite": RESUME, "classes": WHERE, "test_data": WHERE,
        "clip_model": "names the encoder of images that are not embedded yet",
        **dict.fromkeys([*READING, "hf_split", "number_sample_per_shard"], ELSEWHERE),
    },
}  # fmt: skip
TRIALS = {
    "clean": {**EMBED, **SCORE, **DECIDE, **{name: (value, extra) for name, (_, value, extra) in READING.items()}},
    "score": SCORE, "decide": DECIDE, "export": EXPORT, "inject": INJECT, "prompt": PROMPT,
}  # fmt: skip


@pytest.mark.parametrize("name", TRIALS)
def test_the_tables_name_every_option_once(name: str) -> None:
    function = next(verb for verb in ROWS if verb.name == name).function()
    takes = {item.name for item in parameters(function)}
    assert takes == {*TRIALS[name], *NO_EFFECT[name]}
    assert not set(TRIALS[name]) & set(NO_EFFECT[name])


# ---- the runs


def at(place: Path, options: Options, *names: str) -> Options:
    """Options with files of the place by their whole path."""
    return {key: str(place / value) if key in names else value for key, value in options.items()}


@pytest.fixture(scope="module")
def run(place: Path) -> nc.CleanRun:
    return nc.clean(place / "pairs.parquet", place / "run", clip_model="tiny", caption_col="text", workers=1)


def test_clean_reads_and_embeds_as_it_is_told(place: Path, tmp_path: Path) -> None:
    calls = iter(range(1000))

    def cleaned(source: str) -> Callable[[Options], dict[str, bytes]]:
        def work(options: Options) -> dict[str, bytes]:
            folder = tmp_path / str(next(calls))
            return outputs(nc.embed(place / source, folder, clip_model="tiny", workers=1,
                                    **at(place, options, "image_root")).folder)  # fmt: skip

        return work

    idle = changes({name: (value, {"caption_col": "text"} | extra) for name, (value, extra) in EMBED.items()},
                   cleaned("few.parquet"))  # fmt: skip
    for option, (source, value, extra) in READING.items():
        idle += changes({option: (value, extra)}, cleaned(source))
    assert not idle, idle


def test_clean_scores_and_decides_as_it_is_told(place: Path, run: nc.CleanRun) -> None:
    def work(options: Options) -> dict[str, bytes]:
        found = nc.clean(place / "pairs.parquet", place / "run", clip_model="tiny", caption_col="text", workers=1,
                         stages="embed,score,decide", **{"folds": 3} | at(place, options, "labels"))  # fmt: skip
        return outputs(found.folder)

    assert not changes(DECIDE, work)
    assert not changes(SCORE, work)


def test_score_and_decide_do_as_they_are_told(
    place: Path, run: nc.CleanRun, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    monkeypatch.setattr(
        "noisycorr.clean.result.report_stage", lambda run: None
    )  # which takes longest, and is no output
    assert not changes(DECIDE, lambda options: outputs(run.decide(**at(place, options, "labels")).folder))
    assert not changes(SCORE, lambda options: outputs(run.score(**{"folds": 3} | options).folder))
    run.score()


def test_export_does_as_it_is_told(run: nc.CleanRun, tmp_path: Path) -> None:
    ledger = next((run.folder / "ledger").glob("*.parquet"))
    table = pq.read_table(ledger)
    texts = pa.array([f"new {key}" for key in table.column("key").to_pylist()], pa.string())
    pq.write_table(table.append_column("text_rectified", texts), ledger)
    calls = iter(range(1000))

    def work(options: Options) -> dict[str, bytes]:
        return outputs(run.export(output_path=tmp_path / str(next(calls)), **options))

    assert not changes(EXPORT, work)


def test_inject_does_as_it_is_told(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = iter(range(1000))
    rows = [
        row | {"colour": row["text"].split()[1], "text": row["text"].split(" seen")[0]} for row in made_pairs()[:12]
    ]
    pq.write_table(
        pa.Table.from_pylist([*rows, *(row | {"key": f"2{row['key']}"} for row in rows)]), place / "in.parquet"
    )

    def work(options: Options) -> dict[str, bytes]:
        options = at(place, options, "noise_file")
        if options.get("noise") == "noise_file":
            options.setdefault("noise_file", str(place / "same.npy"))
        return outputs(nc.inject(place / "in.parquet", tmp_path / str(next(calls)), caption_col="text", **options))

    np.save(place / "same.npy", np.arange(24))
    np.save(place / "noise.npy", np.random.default_rng(0).permutation(24))
    assert not changes(INJECT, work)


def test_prompt_does_as_it_is_told(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    place = make_place(tmp_path_factory.mktemp("prompt"))
    kept: dict[str, Any] = {}
    load = sources.load_encoder

    def load_once(spec: str, **how: Any) -> Any:
        if spec not in kept:
            kept[spec] = load(spec, **how)
        return kept[spec]

    monkeypatch.setattr(sources, "load_encoder", load_once)  # which takes longer than all the rest
    table = pq.read_table(place / "run" / "pairs" / "00000.parquet", columns=["key", "text"]).to_pylist()
    known = [f"{row['key']},{row['text'].replace('_', ' ')}" for row in table[::4]]
    (place / "known.csv").write_text("\n".join(["key,label", *known]) + "\n")
    (place / "seen.txt").write_text("blue square\n")
    names = (place / "classes.txt").read_text().split("\n")[:-1]
    write_json(place / "prior.json", {name: number + 1 for number, name in enumerate(names)})
    monkeypatch.setattr("noisycorr.prompt.report.write_prompt_report", lambda *given: None)  # it is left out here
    calls = iter(range(1000))

    def work(options: Options) -> dict[str, bytes]:
        quick = {"rounds": 2, "epochs": 1, "guard": False} | at(place, options, "labels", "seen", "class_prior")
        return outputs(
            nc.prompt(place / "run", place / str(next(calls)), classes=place / "classes.txt", **quick).folder
        )

    assert not changes(PROMPT, work)
