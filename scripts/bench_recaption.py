"""Does `recaption` repair? Known swaps in, then: which pairs got a new text, and is that nearer to the true one?

    python scripts/bench_recaption.py --data DATA --cache CACHE --sets fashion,emoji --output results.json

Frozen features of the embedded encoder, as in `bench_detect.py`. Truth is used for the numbers only.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench_features import Features, load_features

from noisycorr.caption.recaption.judge import Asked, fold_scorer, judging_folds
from noisycorr.caption.recaption.propose import trusted_rows
from noisycorr.caption.recaption.repair import Repairs, repair
from noisycorr.caption.recaption.rule import Recaption
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
from noisycorr.runtime.folder import Run, write_json
from noisycorr.stats.unit import unit


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


def tables(rows: list[dict[str, Any]]) -> str:
    """Markdown: what was repaired, and recall after training; means over seeds."""
    columns = {
        "wrong": "wrong pairs", "replaced_of_wrong": "% of them replaced", "better_by_truth": "% better by truth",
        "better_by_heads": "% better by clean heads", "same_text": "% the very text", "cosine_old": "cosine before",
        "cosine_new": "cosine after", "right_replaced": "% right pairs replaced", "flagged": "flagged",
    }  # fmt: skip
    lines = [
        "| set | noise | options | seeds | " + " | ".join(columns.values()) + " |",
        "|" + "---|" * (len(columns) + 4),
    ]
    trained = ["| set | noise | seeds | raw | filtered | repaired | right pairs |", "|" + "---|" * 7]
    cells: dict[tuple[str, float, str], list[dict[str, Any]]] = {}
    for row in rows:
        cells.setdefault((row["set"], row["ratio"], json.dumps(row["options"])), []).append(row)
    for (name, ratio, options), some in cells.items():
        means = [np.mean([row[column] for row in some if row[column] is not None]) for column in columns]
        told = " | ".join(f"{value:.4g}" for value in means)
        lines.append(f"| {name} | {ratio:g} | {options} | {len(some)} | {told} |")
        if all("rSum" in row for row in some):
            arms = [np.mean([row["rSum"][arm] for row in some]) for arm in some[0]["rSum"]]
            told = " | ".join(f"{value:.1f}" for value in arms)
            trained.append(f"| {name} | {ratio:g} | {len(some)} | {told} |")
    return "\n".join([*lines, *(["", *trained] if len(trained) > 2 else [])])


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--sets", default="fashion,emoji,caltech101,coco_mini")
    parser.add_argument("--ratios", default="0.4")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--limit", type=int, default=6000)
    parser.add_argument("--options", default="{}", help="several dictionaries of fields of Recaption, joined by ';'")
    parser.add_argument("--train", help="runs of `clean` on the validation and test pairs of fashion, with a comma")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--tables", nargs="*", type=Path, help="only print the tables of these results")
    given = parser.parse_args()
    if given.tables:
        print(tables([row for path in given.tables for row in json.loads(path.read_text(encoding="utf-8"))]))
        return
    torch.set_num_threads(1)
    encoder = EmbeddedEncoder()
    done = []
    for name in given.sets.split(","):
        data = load_features(name, given.data, given.limit, given.cache, encoder)
        for ratio, seed, options in itertools.product(given.ratios.split(","), given.seeds.split(","),
                                                      given.options.split(";")):  # fmt: skip
            started = time.process_time()
            choice = Recaption(**json.loads(options))
            noise = RandomSwap(ratio=float(ratio), unit="caption", seed=int(seed))(data.texts, image_ids=data.shown)
            p_clean, found, view = repaired_set(data, noise.source_row, choice, encoder)
            row = {"set": name, "ratio": float(ratio), "seed": int(seed), "options": json.loads(options)}
            row |= measure(data, noise.source_row, noise.wrong, view, found)
            if given.train and name == "fashion":
                valid, test = map(Path, given.train.split(","))
                budget = Train(epochs=given.epochs, seed=int(seed))
                row["rSum"] = train(data, noise.source_row, noise.wrong, p_clean, found, (valid, test), budget)
            done.append(row | {"seconds": round(time.process_time() - started, 1)})
            print(json.dumps(done[-1]), flush=True)
            write_json(given.output, done)
    print(tables(done))


if __name__ == "__main__":
    main()
