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

from noisycorr.encoders.embedded import EmbeddedEncoder
from noisycorr.noise import RandomSwap
from noisycorr.noise_swaps import text_ids
from noisycorr.recaption.judge import Asked, fold_scorer, judging_folds
from noisycorr.recaption.propose import trusted_rows
from noisycorr.recaption.repair import Repairs, repair
from noisycorr.recaption.rule import Recaption
from noisycorr.run import write_json
from noisycorr.score.pipeline import Score, score_pairs
from noisycorr.score.view import View, unit


def view_of(data: Features, source: np.ndarray) -> tuple[View, list[str]]:
    """The set with the texts of other rows."""
    texts = [data.texts[row] for row in source]
    text = data.text[source]
    view = View(image=[data.image], text=[text], text_id=text_ids(texts), image_id=data.group, seed=0,
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


def measure(data: Features, source: np.ndarray, wrong: np.ndarray, view: View, found: Repairs) -> dict[str, Any]:
    """Shares, in percent, of what was replaced; by truth, and by heads that were learned on the true pairs."""
    taken = np.isin(found.action, ("replace", "merge"))
    rows, lender = found.rows[taken], found.lender[taken]
    true, old, new = (unit(data.text[r]) for r in (rows, source[rows], source[lender]))
    near_old, near_new = (old * true).sum(1), (new * true).sum(1)
    fold = judging_folds(view, 5)
    clean, _ = view_of(data, np.arange(len(source)))
    scorer = fold_scorer(clean, np.ones(len(source), np.float32), fold)
    ids = text_ids([data.texts[i] for i in range(len(source))])
    asked = [Asked(rows, data.text[r].astype(np.float32), ids[r], fold[r]) for r in (source[rows], source[lender])]
    by_heads = scorer(asked[1]) > scorer(asked[0])
    bad = wrong[rows]
    share = lambda part: round(100 * float(np.mean(part)), 1) if len(part) else None  # noqa: E731
    return {
        "wrong": int(wrong.sum()), "marked": len(found.rows), "marked_wrong": share(wrong[found.rows]),
        "replaced": int(taken.sum()), "replaced_of_wrong": share(np.isin(np.flatnonzero(wrong), rows)),
        "flagged": int((found.action == "flag").sum()), "kept": int((found.action == "keep").sum()),
        "better_by_truth": share((near_new > near_old)[bad]), "better_by_heads": share(by_heads[bad]),
        "same_text": share((ids[source[lender]] == ids[rows])[bad]),
        "cosine_old": round(float(near_old[bad].mean()), 3), "cosine_new": round(float(near_new[bad].mean()), 3),
        "right_replaced": round(100 * float((~bad).sum() / max((~wrong).sum(), 1)), 2),
        "jury": found.facts["jury"],
    }  # fmt: skip


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
    given = parser.parse_args()
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
            _, found, view = repaired_set(data, noise.source_row, choice, encoder)
            row = {"set": name, "ratio": float(ratio), "seed": int(seed), "options": json.loads(options)}
            row |= measure(data, noise.source_row, noise.wrong, view, found)
            done.append(row | {"seconds": round(time.process_time() - started, 1)})
            print(json.dumps(done[-1]), flush=True)
            write_json(given.output, done)


if __name__ == "__main__":
    main()
