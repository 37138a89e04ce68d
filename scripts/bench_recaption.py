"""Does `recaption` repair? Known swaps in, then: which pairs got a new text, and is that nearer to the true one?

    python scripts/bench_recaption.py --data DATA --cache CACHE --sets fashion,emoji --output FOLDER

Frozen features of the embedded encoder, as in `bench_detect.py`. Truth is used for the numbers only.
"""

from __future__ import annotations

import argparse
import json
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench_features import Features, load_features

from noisycorr.caption.recaption.choice import Recaption
from noisycorr.caption.recaption.judge import Asked, fold_scorer, judging_folds
from noisycorr.caption.recaption.propose import trusted_rows
from noisycorr.caption.recaption.repair import Repairs, repair
from noisycorr.clean.bench import Metric, Row, grid, joined, markdown, metric_table, plot, run_grid, shown, stored_cell
from noisycorr.clean.bench_sets import listed
from noisycorr.clean.corpus import Corpus, read_corpus
from noisycorr.clean.signals.pipeline import Score, score_pairs
from noisycorr.clean.signals.view import PairEmbeddings
from noisycorr.data.noise.recipes import RandomSwap
from noisycorr.data.noise.swaps import text_ids
from noisycorr.models.encoders.embedded import EmbeddedEncoder
from noisycorr.models.training.choice import Train
from noisycorr.models.training.learner import Learner
from noisycorr.models.training.loop import Hooks, fit
from noisycorr.retrieval.fit import make_learner, make_towers
from noisycorr.retrieval.scoreboard import retrieval, short
from noisycorr.retrieval.strategies import load_strategy
from noisycorr.runtime.folder import Run
from noisycorr.stats.unit import unit

COLUMNS = {
    "wrong": "wrong pairs", "replaced_of_wrong": "% of them replaced", "better_by_truth": "% better by truth",
    "better_by_heads": "% better by clean heads", "same_text": "% the very text", "cosine_old": "cosine before",
    "cosine_new": "cosine after", "right_replaced": "% right pairs replaced", "flagged": "flagged",
}  # fmt: skip
DIGITS = {"wrong": 0, "flagged": 0, "cosine_old": 3, "cosine_new": 3, "right_replaced": 2}
METRICS = [Metric(name=name, title=title, digits=DIGITS.get(name, 1)) for name, title in COLUMNS.items()]
LINES = {"set": lambda row: row["set"], "noise": lambda row: f"{row['ratio']:g}", "options": lambda row: row["method"]}


def view_of(data: Features, source: np.ndarray) -> tuple[PairEmbeddings, list[str]]:
    """The set with the texts of other rows."""
    texts = [data.texts[row] for row in source]
    text = data.text[source]
    view = PairEmbeddings(image=[data.image], text=[text], text_id=text_ids(texts), image_id=data.group, seed=0,
                present=np.asarray(data.image.any(1) & text.any(1)), picture=data.shown)  # fmt: skip
    return view, texts


def repaired_set(data: Features, source: np.ndarray, choice: Recaption, encoder: EmbeddedEncoder) -> tuple[Any, ...]:
    """p_clean by `clean`'s scorer, and what `recaption` makes of it."""
    view, texts = view_of(data, source)
    joint = ([data.joint[0]], [data.joint[1][source]])
    scored = score_pairs(view, joint, Score(), learn=True)
    p_clean = scored.fit(scored.pair.given)
    trust = trusted_rows(p_clean, p_clean >= choice.below, least=choice.trust)
    rows = np.flatnonzero(p_clean < choice.below)
    nothing = np.zeros((1, data.image.shape[1]), np.float32)

    def into(text: np.ndarray) -> np.ndarray:
        return encoder.joint_space(nothing, text)[1]

    return p_clean, repair(view, texts, rows, trust, p_clean, choice, joint=(*joint, into)), view


def measure(
    data: Features, source: np.ndarray, wrong: np.ndarray, view: PairEmbeddings, found: Repairs
) -> dict[str, Any]:
    """Shares, in percent, of what was replaced; by truth, and by heads that were learned on the true pairs."""
    taken = np.isin(found.action, ("replace", "merge"))
    rows, donor = found.rows[taken], found.donor[taken]
    true, old, new = (unit(data.text[r]) for r in (rows, source[rows], source[donor]))
    near_old, near_new = (old * true).sum(1), (new * true).sum(1)
    fold = judging_folds(view, 5)
    clean, _ = view_of(data, np.arange(len(source)))
    scorer = fold_scorer(clean, np.ones(len(source), np.float32), fold)
    ids = text_ids([data.texts[i] for i in range(len(source))])
    asked = [Asked(rows, data.text[r].astype(np.float32), ids[r], fold[r]) for r in (source[rows], source[donor])]
    by_heads = scorer(asked[1]) > scorer(asked[0])
    bad = wrong[rows]
    share = lambda part: round(100 * float(np.mean(part)), 1) if len(part) else None  # noqa: E731
    return {
        "wrong": int(wrong.sum()), "marked": len(found.rows), "marked_wrong": share(wrong[found.rows]),
        "replaced": int(taken.sum()), "replaced_of_wrong": share(np.isin(np.flatnonzero(wrong), rows)),
        "flagged": int((found.action == "flag").sum()), "kept": int((found.action == "keep").sum()),
        "better_by_truth": share((near_new > near_old)[bad]), "better_by_heads": share(by_heads[bad]),
        "same_text": share((ids[source[donor]] == ids[rows])[bad]),
        "cosine_old": round(float(near_old[bad].mean()), 3), "cosine_new": round(float(near_new[bad].mean()), 3),
        "right_replaced": round(100 * float((~bad).sum() / max((~wrong).sum(), 1)), 2),
        "jury": found.facts["jury"],
    }  # fmt: skip


def train(data: Features, source: np.ndarray, wrong: np.ndarray, p_clean: np.ndarray, found: Repairs,
          places: tuple[Path, Path], choice: Train) -> dict[str, float]:  # fmt: skip
    """Recall on clean test pairs of models trained on the raw, the filtered, the repaired and the right pairs."""
    valid, test = (read_corpus(Run(place)) for place in places)
    taken = np.isin(found.action, ("replace", "merge"))
    repaired_source = source.copy()
    repaired_source[found.rows[taken]] = source[found.donor[taken]]
    everything, kept = np.arange(len(source)), p_clean >= 0.5
    mended = kept.copy()
    mended[found.rows[taken]] = True
    arms = {"raw": (source, everything), "filtered": (source, np.flatnonzero(kept)),
            "repaired": (repaired_source, np.flatnonzero(mended)),
            "right pairs": (source, np.flatnonzero(~wrong))}  # fmt: skip
    out = {}
    for name, (texts, rows) in arms.items():
        corpus = corpus_of(data, texts)
        learner = make_learner(corpus, rows, load_strategy("plain"), choice)
        towers = [make_towers(one, choice) for one in (valid, test)]
        chosen = [np.flatnonzero(one.usable) for one in (valid, test)]

        def validate(it: Learner, towers: Any = towers, chosen: Any = chosen) -> dict[str, Any]:
            line = short(retrieval(it.networks, towers[0], chosen[0], valid.shown[chosen[0]]), "valid")
            return line | {"select": line["valid_rSum"]}

        fit(learner, Hooks(validate=validate))
        learner.load_weights(learner.best)
        result = retrieval(learner.networks, towers[1], chosen[1], test.shown[chosen[1]])
        assert isinstance(result["ensemble"], dict)
        out[name] = round(result["ensemble"]["rSum"], 1)
    return out


def corpus_of(data: Features, source: np.ndarray) -> Corpus:
    """A set as something to train on, with the texts of other rows."""
    n, text = len(source), data.text[source]
    return Corpus(keys=[str(i) for i in range(n)], image=data.image, text=text, usable=np.ones(n, bool),
                  kept=np.ones(n, bool), shown=data.shown, image_group=data.group,
                  text_group=text_ids([data.texts[row] for row in source]))  # fmt: skip


def tables(rows: list[Row]) -> str:
    """Markdown: what was repaired, and recall after training."""
    head, lines = [*LINES, *(metric.title for metric in METRICS)], []
    for place in dict.fromkeys(tuple(text(row) for text in LINES.values()) for row in rows):
        some = [row for row in rows if tuple(text(row) for text in LINES.values()) == place]
        lines.append([*place, *(shown(metric.values(some), metric.digits) for metric in METRICS)])
    trained = [{**row, "method": arm, "rSum": value} for row in rows for arm, value in row.get("rSum", {}).items()]
    return joined(rows, markdown(head, lines), metric_table(trained, Metric(name="rSum", title="rSum"), LINES))


def work(data: Features, cell: Row, given: argparse.Namespace, encoder: EmbeddedEncoder) -> Row:
    """Put noise in, repair, and measure."""
    choice = Recaption(**json.loads(cell["method"]))
    noise = RandomSwap(ratio=cell["ratio"], unit="caption", seed=cell["seed"])(data.texts, image_ids=data.shown)

    def measured() -> Row:
        started = time.process_time()
        p_clean, found, view = repaired_set(data, noise.source_row, choice, encoder)
        row = measure(data, noise.source_row, noise.wrong, view, found)
        if given.train and data.name == "fashion":
            valid, test = map(Path, given.train.split(","))
            budget = Train(epochs=given.epochs, seed=cell["seed"])
            row["rSum"] = train(data, noise.source_row, noise.wrong, p_clean, found, (valid, test), budget)
        return row | {"seconds": round(time.process_time() - started, 1)}

    inputs = {"cell": cell, "limit": given.limit, "weights": encoder.weights_hash,
              "train": [given.train, given.epochs] if data.name == "fashion" else None}  # fmt: skip
    return {"set": data.name, **cell, **stored_cell(given.output, data.name, inputs, measured)}


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--sets", default="fashion,emoji,caltech101,coco_mini")
    parser.add_argument("--ratios", default="0.4")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--limit", type=int, default=6000)
    parser.add_argument("--options", default="{}", help="several dictionaries of fields of Recaption, joined by ';'")
    parser.add_argument("--train", help="runs of `clean` on the validation and test pairs of fashion, with a comma")
    parser.add_argument("--epochs", type=int, default=10)
    given = parser.parse_args()
    torch.set_num_threads(1)
    encoder = EmbeddedEncoder()
    cells = grid(
        seed=list(map(int, listed(given.seeds))),
        ratio=list(map(float, listed(given.ratios))),
        method=given.options.split(";"),
    )
    plan = [(partial(load_features, name, given.data, given.limit, given.cache, encoder), cells)
            for name in listed(given.sets)]  # fmt: skip
    print(run_grid(
        Run(given.output), plan, partial(work, given=given, encoder=encoder), tables=tables, line=json.dumps,
        settings={"options": given.options, "train": given.train, "epochs": given.epochs},
        draw=partial(plot, metric=METRICS[1], x="ratio", x_title="share of wrong pairs", panel=lambda row: row["set"]),
    ).table)  # fmt: skip


if __name__ == "__main__":
    main()
