"""`noisycorr prompt` from a folder of pictures to its files; wrong use; two processes; a run that is killed."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from pictures import COLOURS, write_pictures
from prompt_process import KINDS, learned, prepare
from safetensors.torch import load_file
from tiny_checkpoints import write_clip

from noisycorr.__main__ import main
from noisycorr.prompt.choice import Context, Rounds, Steps
from noisycorr.prompt.task import read_classes, read_labels
from noisycorr.runtime.errors import UsageError

HERE = Path(__file__).parents[1]
N = 24
FAST = ["--rounds", "2", "--epochs", "2", "--guard", "false", "-q"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures in folders by class, class names, and a tiny CLIP."""
    return make_place(tmp_path_factory.mktemp("prompt"))


def make_place(place: Path) -> Path:
    """The same in a folder."""
    write_clip(place / "clip")
    write_pictures(place / "pictures", N)
    for colour in COLOURS:
        (place / "data" / f"{colour}_square").mkdir(parents=True)
    for row in range(N):
        colour = list(COLOURS)[(row % 12) // 3]
        name = f"{row:03d}.png"
        (place / "pictures" / "images" / name).rename(place / "data" / f"{colour}_square" / name)
    (place / "classes.txt").write_text("".join(f"{colour}_square\n" for colour in COLOURS) + "a dog\n")
    assert main(["embed", str(place / "data"), "--output_folder", str(place / "run"), "--clip_model",
                 f"hf_clip:{place / 'clip'}", "-q"]) == 0  # fmt: skip
    return place


def words(place: Path, out: str, *more: str) -> list[str]:
    return ["prompt", str(place / "run"), "--classes", str(place / "classes.txt"), "--output_folder", str(place / out),
            *FAST, *more]  # fmt: skip


def test_from_pictures_to_files_that_others_read(place: Path, capsys: pytest.CaptureFixture[str]):
    assert main(words(place, "out")) == 0
    out = place / "out"
    classifier = np.load(out / "classifier.npy", allow_pickle=False)
    assert classifier.shape == (5, 24) and np.allclose(np.linalg.norm(classifier, axis=1), 1, atol=1e-5)
    assert load_file(out / "prompt.safetensors")["context"].shape == (5, 4, 16)
    report = json.loads((out / "report.json").read_text())
    assert report["paradigm"] == "unsupervised" and report["measured_on"] == "the unlabelled images"
    assert len(report["history"]) == 2 and "TransCLIP, in the image tower" in report["baselines"]
    assert 0 <= report["settled"] <= 1
    nobody = next(row for row in report["by_class"] if row["class"] == "a dog")
    assert nobody["images"] == 0 and nobody["accuracy_tuned"] is None, "a class without an image has no accuracy"
    assert report["encodings"]["released"] > 20 * report["encodings"]["here"]
    table = pq.read_table(out / "pseudo_labels.parquet")
    assert table.column_names == ["key", "label", "probability", "round", "rank"] and len(table)
    assert set(table.column("label").to_pylist()) <= {
        "red square",
        "green square",
        "blue square",
        "white square",
        "a dog",
    }
    ledger = pq.read_table(out / "ledger.parquet")
    assert len(ledger) == N and {"key", "text", "p_clean", "verdict", "reason"} <= set(ledger.column_names)
    page = (out / "report.html").read_text()
    assert page.count("data:image/jpeg") >= 4 and "a dog" in page
    before = {name: (out / name).read_bytes() for name in ("report.json", "report.html", "prompt.safetensors")}
    (out / "report.html").unlink()  # so that it is made again, from the rounds that are kept
    assert main(words(place, "out")) == 0
    assert before == {name: (out / name).read_bytes() for name in before}
    assert main(["clean", str(out / "labelled"), "--output_folder", str(place / "cleaned"), "-q"]) == 0
    assert main(words(place, "out", "--lr", "0.5")) == 2
    assert "lr" in capsys.readouterr().err


def test_where_zero_shot_is_hopeless_the_guard_leaves_it_as_it_is(place: Path):
    line = [word for word in words(place, "zero_shot_failed") if word not in ("--guard", "false")]
    assert main(line) == 0
    report = json.loads((place / "zero_shot_failed" / "report.json").read_text())
    assert report["stopped"] and not report["history"] and "too poor" in report["doubts"]["warning"]
    assert report["measures"]["after"] == report["measures"]["before"] == report["baselines"]["zero-shot"]
    assert (
        "settled" not in report
        and "did not let the loop begin" in (place / "zero_shot_failed" / "report.html").read_text()
    )
    assert pq.read_table(place / "zero_shot_failed" / "pseudo_labels.parquet").num_rows == 0
    assert pq.read_table(place / "zero_shot_failed" / "ledger.parquet").num_rows == N


def test_corrected_labels_go_back_in_and_seen_classes_are_left_alone(place: Path):
    keys = pq.read_table(place / "run" / "pairs" / "00000.parquet").column("key").to_pylist()
    lines = ["key,label,probability,round,rank", f"{keys[0]},blue square,0.5,1,1", f"{keys[1]},blue_square,0.5,1,1"]
    (place / "few.csv").write_text("\n".join(lines) + "\n")
    (place / "seen.txt").write_text("blue square\n")
    assert main(words(place, "few", "--labels", str(place / "few.csv"), "--seen", str(place / "seen.txt"))) == 0
    report = json.loads((place / "few" / "report.json").read_text())
    assert report["paradigm"] == "transductive zero-shot" and report["labelled"] == 2
    labels = pq.read_table(place / "few" / "pseudo_labels.parquet").column("label").to_pylist()
    assert labels and "blue square" not in labels


@pytest.mark.parametrize("kind", ["visual", "multimodal"])
def test_prompts_of_the_image_tower(kind: str, place: Path):
    assert main(words(place, kind, "--prompt", kind, "--prompt_tokens", "2", "--depth", "deep")) == 0
    names = set(load_file(place / kind / "prompt.safetensors"))
    assert names == {"tokens"} if kind == "visual" else "text_part" in names
    report = json.loads((place / kind / "report.json").read_text())
    assert report["encodings"]["here"] > N


def test_wrong_use_is_told_in_a_sentence(place: Path, capsys: pytest.CaptureFixture[str]):
    def told(*more: str, classes: str | None = None) -> str:
        if classes is not None:
            (place / "bad.txt").write_text(classes)
        line = words(place, "wrong", *more)
        if classes is not None:
            line[line.index("--classes") + 1] = str(place / "bad.txt")
        assert main(line) == 2
        return capsys.readouterr().err

    assert "twice, first as 'red square'" in told(classes="red square\nred_square\n")
    assert "does not fit" in told(classes="dog\n" + "horse " * 90 + "\n")
    assert "at least 2" in told(classes="dog\n")
    assert "holds no classes" in told(classes="\n")
    assert "among the images to learn from" in told("--test_data", str(place / "run"))
    (place / "strange.csv").write_text("key,label\nnobody,a dog\n")
    assert "none of its 1 keys" in told("--labels", str(place / "strange.csv"))
    (place / "strange.csv").write_text("key,label\nnobody,a cat\n")
    assert "'a cat'" in told("--labels", str(place / "strange.csv"))
    (place / "seen.txt").write_text("a dog\n")
    assert "no image of it" in told("--seen", str(place / "seen.txt"))
    (place / "prior.json").write_text('{"a dog": 1}')
    assert "lacks" in told("--class_prior", str(place / "prior.json"))
    assert "lower it, or give --labels" in told("--selector", "threshold")
    folder = place / "vectors"
    folder.mkdir()
    np.save(folder / "image.npy", np.ones((3, 7), np.float32))
    np.save(folder / "text.npy", np.ones((3, 7), np.float32))
    line = ["prompt", str(folder), "--classes", str(place / "classes.txt"), "--output_folder", str(place / "wide"),
            "--clip_model", f"hf_clip:{place / 'clip'}", "-q"]  # fmt: skip
    assert main(line) == 2
    assert "(n, 24)" in capsys.readouterr().err


def test_the_example_of_the_readme_is_what_it_says(tmp_path: Path):
    spec = importlib.util.spec_from_file_location("prompt_example", HERE.parent / "scripts" / "prompt_example.py")
    assert spec is not None and spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    example.main(tmp_path)
    names, _ = read_classes(tmp_path / "classes.txt")
    table = pq.read_table(tmp_path / "clipart.parquet", columns=["key", "text", "split"]).to_pylist()
    assert {row["text"] for row in table} == set(names) and len(names) == 23
    assert len({row["key"] for row in table}) == len(table) > 400
    assert 0.2 < sum(row["split"] == "test" for row in table) / len(table) < 0.4


def test_class_files(tmp_path: Path):
    path = tmp_path / "classes.yaml"
    path.write_text("fire_truck: [a red truck, a truck with a ladder]\ndog: \ncat: an animal\n")
    names, about = read_classes(path)
    assert names == ["fire truck", "dog", "cat"]
    assert about == {"fire truck": ["a red truck", "a truck with a ladder"], "cat": ["an animal"]}
    for body in ("3", "[a", "- a\n- a\n", "- ''\n"):
        path.write_text(body)
        with pytest.raises(UsageError):
            read_classes(path)
    labels = tmp_path / "labels.csv"
    labels.write_text("key,label\na,dog\nb,\n")
    assert read_labels(labels, ["b", "a"], names).tolist() == [-1, 1]
    labels.write_text("key,label\na,dog\na,cat\n")
    with pytest.raises(UsageError, match="two labels"):
        read_labels(labels, ["a"], names)
    lines = tmp_path / "labels.jsonl"
    with pytest.raises(UsageError, match="is not a file"):
        read_labels(lines, ["a"], names)
    for body, told in (("5\n", "columns key and label"), ('{"key": "a"}\n', "columns key and label"), ("{", "parsed")):
        lines.write_text(body)
        with pytest.raises(UsageError, match=told):
            read_labels(lines, ["a"], names)


@pytest.mark.parametrize(
    ("choice", "values"),
    [(Context, {"prompt_tokens": 0}), (Context, {"template": "a photo"}), (Context, {"prompt": "audio"}),
     (Context, {"prompt_init": " "}), (Rounds, {"rounds": 0}), (Rounds, {"decay": 0.0}), (Rounds, {"selector": "best"}),
     (Rounds, {"neighbors": -1}), (Rounds, {"alpha": 2.0}), (Steps, {"epochs": 0}), (Steps, {"gce_q": 0.0}),
     (Steps, {"loss": "mse"})],
)  # fmt: skip
def test_values_out_of_range_are_refused(choice: type, values: dict[str, object]):
    with pytest.raises(UsageError, match=f"`{next(iter(values))}`"):
        choice(**values)


def environment() -> dict[str, str]:
    paths = filter(None, [str(HERE), str(HERE.parent), os.environ.get("PYTHONPATH")])
    return os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "PYTHONPATH": os.pathsep.join(paths)}


def test_two_processes_learn_what_one_learns(tmp_path: Path):
    prepare(tmp_path)
    line = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
            str(HERE / "prompt_process.py"), str(tmp_path)]  # fmt: skip
    done = subprocess.run(line, capture_output=True, text=True, env=environment(), timeout=900)
    assert done.returncode == 0, done.stderr
    for kind in KINDS:
        alone = learned(tmp_path, kind)
        for rank in range(2):
            shared = load_file(tmp_path / f"{kind}.{rank}.safetensors")
            assert shared.keys() == alone.keys()
            for name, value in alone.items():
                assert float((shared[name] - value).abs().max()) < 1e-10, f"{kind} {name}"


def test_killed_and_continued_leaves_the_same_bytes(place: Path, capsys: pytest.CaptureFixture[str]):
    more = ["--rounds", "12", "--epochs", "2"]
    line = [word for word in words(place, "alone") if word not in ("--rounds", "--epochs", "2")] + more
    assert main(line) == 0
    line[line.index("--output_folder") + 1] = str(place / "killed")
    process = subprocess.Popen([sys.executable, "-m", "noisycorr", *line], env=environment())
    started = time.monotonic()
    while not (place / "killed" / "rounds" / "003.json").exists():
        assert process.poll() is None and time.monotonic() - started < 300
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (place / "killed" / "stages" / "prompt.json").exists(), "it was killed at work"
    assert main(["status", str(place / "killed")]) == 0
    told = capsys.readouterr().out
    assert "dead" in told and "prompt: begun," in told and "not finished: the same command continues it" in told
    assert main(line) == 0
    for name in ("prompt.safetensors", "classifier.npy", "pseudo_labels.csv", "ledger.parquet", "report.json"):
        assert (place / "alone" / name).read_bytes() == (place / "killed" / name).read_bytes(), name
