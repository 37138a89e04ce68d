"""The report of a made-up run: escaping, size, stability, missing facts, and counts."""

from __future__ import annotations

import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from report_run import THUMBNAILS, decide_facts, make_run, report_of

from noisycorr.clean.report import write_report
from noisycorr.runtime.errors import UsageError
from noisycorr.runtime.folder import Run


class Page(HTMLParser):
    """What a browser would see: tags, their attributes, and the text outside of style sheets."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of 600 pairs with hostile texts, and its report."""
    run = make_run(tmp_path_factory.mktemp("run"))
    write_report(run)
    return run


def test_nothing_from_the_data_becomes_markup(run: Run) -> None:
    page = Page(run.folder / "report.html")
    assert not {tag for tag, _ in page.tags} & {"script", "iframe", "object", "embed", "base", "form"}
    for tag, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on")], (tag, attributes)
        for name in ("src", "href"):
            address = attributes.get(name) or "#"
            assert address.startswith(("#", "data:image/jpeg;base64,/9j/", "data:,")), address
    assert "<script>alert(1)</script>" in page.text
    assert "{{ 7*7 }} {% raw %} &lt;b&gt;" in page.text  # neither evaluated nor decoded twice
    titles = " ".join(attributes.get("title") or "" for _, attributes in page.tags)
    assert "\"' onmouseover='alert(1)' x=\"" in titles
    assert "شجرة خضراء" in page.text and "🟥👩‍👩‍👧" in page.text
    assert "NUL\ufffdinside\ufffd[31m" in page.text
    assert not re.search(r"[\x00-\x08\x0b-\x1f]", (run.folder / "report.html").read_text(encoding="utf-8"))
    assert "1,000,000 characters in all" in titles and len(titles) < 100_000
    assert re.search(r"url\(|@import|https?://", (run.folder / "report.html").read_text(encoding="utf-8")) is None


def test_pictures_are_ours_and_sized(run: Run) -> None:
    images = [attributes for tag, attributes in Page(run.folder / "report.html").tags if tag == "img"]
    assert len(images) > 60
    assert all((image["width"], image["height"], image["loading"]) == ("72", "60", "lazy") for image in images)
    assert all(image["alt"] for image in images)


def test_what_is_no_jpeg_is_not_shown(tmp_path: Path) -> None:
    run = make_run(tmp_path, 60, piece=60, hostile=False)
    path = run.folder / "pairs" / "00000.parquet"
    table = pq.read_table(path)
    good = THUMBNAILS["bar", "red"]
    bad = [b"<svg onload=alert(1)>", b"", None, b"\xff\xd8\xff" + b"x" * 50, good + bytes(300_000), good]
    column = pa.array([bad[i % len(bad)] for i in range(60)], pa.binary())
    pq.write_table(table.set_column(table.column_names.index("thumbnail"), "thumbnail", column), path)
    page = write_report(run).read_text(encoding="utf-8")
    sources = set(re.findall(r'<img src="([^"]*)"', page))
    assert len(sources) == 1 and "no picture" in page


def test_large_thumbnails_stop_at_a_budget(tmp_path: Path) -> None:
    run = make_run(tmp_path, 400, piece=400)
    path, file = run.folder / "pairs" / "00000.parquet", io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (384, 512, 3), np.uint8)
    Image.fromarray(noise).save(file, "JPEG", quality=80)
    assert 100_000 < len(file.getvalue()) < 190_000
    table = pq.read_table(path)
    column = pa.array([file.getvalue()] * 400, pa.binary())
    pq.write_table(table.set_column(table.column_names.index("thumbnail"), "thumbnail", column), path)
    assert 5_000_000 < write_report(run).stat().st_size < 20_000_000


def test_counts_in_are_counts_out(run: Run) -> None:
    report = report_of(run)
    counts = report["counts"]
    problems = sum(problem["count"] for problem in counts["problems"].values())
    assert counts["rows"] == 600 == counts["read"] + counts["unreadable"] == sum(counts["verdicts"].values())
    assert counts["unreadable"] == problems == 15 == counts["rows"] - counts["judged"]
    assert sum(rule["count"] for rule in counts["rules"]) == 600
    assert counts["kept"] + counts["dropped"] + counts["review"] == 600
    for name, score in report["scores"].items():
        bars = sum(sum(part) for part in score["counts"].values())
        assert bars == score["count"] == 600 - score["missing"], name
    ledger = pq.read_table(run.folder / "ledger")
    assert counts["issues"]["mismatch"] == sum(ledger["is_mismatch_issue"].to_pylist())
    assert report["verdict"].startswith("117 of 585 judged pairs (20.0\xa0%) look mismatched (95\xa0% interval 18–")


def test_galleries_hold_the_extremes(run: Run) -> None:
    galleries, ledger = report_of(run)["galleries"], pq.read_table(run.folder / "ledger").to_pylist()
    judged = [row for row in ledger if row["p_clean"] == row["p_clean"]]
    worst = min(judged, key=lambda row: (row["p_clean"], row["score_pair"]))
    best = max(judged, key=lambda row: (row["p_clean"], row["score_pair"]))
    assert galleries["wrong"][0]["key"] == worst["key"] and galleries["right"][0]["key"] == best["key"]
    p_clean = [card["p_clean"] for card in galleries["wrong"]]
    assert p_clean == sorted(p_clean) and p_clean[-1] < 0.5 and len(p_clean) == 24
    assert all(abs(card["p_clean"] - 0.5) <= 0.2 for card in galleries["borderline"])
    assert {card["label"] for card in galleries["image"]} >= {"blank", "tiny"}
    assert {card["label"] for card in galleries["text"]} <= {"only_digits", "image_unreadable", "text_missing"}


def test_groups_are_shown_together_with_the_keeper_first(run: Run) -> None:
    report = report_of(run)
    assert report["groups"]["count"] == 6 and report["groups"]["rows"] == 18
    for cards in report["near_duplicate_groups"]:
        assert len({card["row"] // 100 for card in cards}) == 1 and cards[0]["row"] % 100 == 0


def test_empty_galleries_say_so(tmp_path: Path) -> None:
    run = make_run(tmp_path, 40, hostile=False)
    path = run.folder / "ledger" / "00000.parquet"
    table = pq.read_table(path)
    for name, value in (("is_image_issue", False), ("is_text_issue", False), ("p_clean", 0.99)):
        column = pa.array([value] * 40)
        table = table.set_column(table.column_names.index(name), name, column)
    pq.write_table(table.drop_columns(["near_duplicate_group"]), path)
    page = Page(write_report(run)).text
    for sentence in ("No pair has an image issue.", "No pair has a text issue.", "No pair lies below the threshold",
                     "No near-duplicate group was found.", "within 0.2 of the threshold"):  # fmt: skip
        assert sentence in page


def test_two_reports_are_equal_byte_by_byte(run: Run, tmp_path: Path) -> None:
    again = make_run(tmp_path / "elsewhere")
    write_report(again)
    for name in ("report.html", "report.json"):
        first = (run.folder / name).read_bytes()
        write_report(run)
        assert (run.folder / name).read_bytes() == first == (again.folder / name).read_bytes()


def rounded(value: Any) -> Any:
    """The same JSON with ten digits: sums depend on the order of their parts."""
    return json.loads(json.dumps(value), parse_float=lambda number: float(f"{float(number):.10g}"))


def test_size_of_pieces_does_not_matter(tmp_path: Path) -> None:
    one, many = make_run(tmp_path / "one", 1500, piece=1500), make_run(tmp_path / "many", 1500, piece=70)
    first, second = report_of(one), report_of(many)
    for topic in ("counts", "columns", "galleries", "near_duplicate_groups", "truth", "verdict"):
        assert rounded(first[topic]) == rounded(second[topic]), topic


def test_truth_is_checked_where_it_is_known(run: Run) -> None:
    truth = report_of(run)["truth"]
    ledger, pairs = (pq.read_table(run.folder / name).to_pylist() for name in ("ledger", "pairs"))
    known = [(row["p_clean"], json.loads(pair["columns"])["truth_wrong"]) for row, pair in zip(ledger, pairs)]
    known = [(p, wrong) for p, wrong in known if p == p]
    right, wrong = [p for p, bad in known if not bad], [p for p, bad in known if bad]
    wins = sum((p > q) + (p == q) / 2 for p in right for q in wrong)
    assert truth["pairs"] == 585 and truth["wrong"] == len(wrong)
    assert truth["auroc"] == pytest.approx(wins / len(right) / len(wrong), abs=1e-6)
    assert 0 < truth["ece"] < 0.1 and sum(row["pairs"] for row in truth["reliability"]) == 585
    fates = truth["verdicts"].values()
    assert sum(fate["right"] + fate["wrong"] for fate in fates) == 600
    assert "Checked against known truth" in Page(run.folder / "report.html").text


def test_without_truth_there_is_no_reliability(tmp_path: Path) -> None:
    run = make_run(tmp_path, 100, truth=False)
    report, page = report_of(run), Page(run.folder / "report.html").text
    assert report["truth"] == {"pairs": 0, "verdicts": {}}
    assert "Checked against known truth" not in page and "No truth is known for this set" in page


@pytest.mark.parametrize("left", ["nothing", "junk", "no stages"])
def test_facts_may_be_missing(tmp_path: Path, left: str) -> None:
    junk = {"noise_rate": "high", "threshold": None, "curve": {"score": [1]}, "mixture": {"density": {"x": "y"}}}
    run = make_run(tmp_path, 100, facts={} if left == "nothing" else junk)
    if left == "no stages":
        for name in ("stages/embed.json", "stages/score.json", "stages/decide.json", "config.yaml", "provenance.json"):
            (run.folder / name).unlink()
    report, page = report_of(run), Page(run.folder / "report.html").text
    assert "no rate was estimated" in report["verdict"]
    for part in ("The mixture is not drawn", "The curve of p_clean is not drawn", "No noise rate is stated"):
        assert part in page
    noise = next(module for module in report["nutrition"]["modules"] if module["title"] == "Noise estimate")
    assert noise["skipped"] == "the decide stage recorded no noise rate."


def test_a_signal_that_does_not_separate_is_said_plainly(tmp_path: Path) -> None:
    run = make_run(tmp_path, 100, facts={**decide_facts(), "separable": False})
    report, page = report_of(run), Page(run.folder / "report.html").text
    assert "cannot be told" in report["verdict"] and "%" not in report["verdict"]
    assert "does not separate right from wrong" in page and "no: do not rely on the rate" in page


def test_a_ledger_of_few_columns_is_enough(tmp_path: Path) -> None:
    run = make_run(tmp_path, 50, piece=50)
    path = run.folder / "ledger" / "00000.parquet"
    pq.write_table(pq.read_table(path).select(["key", "verdict", "p_clean"]), path)
    assert report_of(run)["counts"]["rows"] == 50


def test_an_empty_run_and_an_unjudged_one(tmp_path: Path) -> None:
    run = make_run(tmp_path / "unjudged", 30)
    path = run.folder / "ledger" / "00000.parquet"
    table = pq.read_table(path)
    pq.write_table(table.set_column(table.column_names.index("p_clean"), "p_clean", pa.array([np.nan] * 30)), path)
    assert report_of(run)["verdict"].startswith("None of the 30 pairs could be judged")
    pq.write_table(table.slice(0, 0), path)
    pairs = run.folder / "pairs" / "00000.parquet"
    pq.write_table(pq.read_table(pairs).slice(0, 0), pairs)
    assert report_of(run)["verdict"] == "This run holds no pairs."


def test_a_run_without_ledger_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no ledger"):
        write_report(Run(tmp_path))
    run = make_run(tmp_path, 30, piece=10)
    (run.folder / "pairs" / "00001.parquet").unlink()
    with pytest.raises(UsageError, match=r"00001\.parquet has 10 rows but"):
        write_report(run)
    assert not (run.folder / "report.html").exists()


def test_fifty_thousand_rows_stay_small(tmp_path: Path) -> None:
    small = make_run(tmp_path / "small", 500)
    big = Run(tmp_path / "big")
    for name in ("pairs", "ledger"):
        table = pq.read_table(small.folder / name)
        for number in range(5):
            pq.write_table(pa.concat_tables([table] * 20), big.path(name, f"{number:05d}.parquet"))
    path = write_report(big)
    assert path.stat().st_size < 3_000_000 and (big.folder / "report.json").stat().st_size < 1_000_000
    assert json.loads((big.folder / "report.json").read_text())["counts"]["rows"] == 50_000
