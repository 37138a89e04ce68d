"""Propose, judge, guard, decide: new texts for the marked rows of a set, on arrays."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from noisycorr.caption.recaption.choice import Recaption
from noisycorr.caption.recaption.guards import disturb, lowest_pmi, noun_overlap, steadiness, word_rates
from noisycorr.caption.recaption.judge import (
    Asked,
    Scorer,
    call_jury,
    fold_scorer,
    joint_scorer,
    judge_new,
    judging_folds,
)
from noisycorr.caption.recaption.propose import Donors, agreeing_donor, class_donor, find_donors, nearest_donor
from noisycorr.caption.recaption.rule import act, fired, merge_texts
from noisycorr.clean.signals.neighbors import mean_feature
from noisycorr.clean.signals.view import PairEmbeddings, take
from noisycorr.data.noise.swaps import normalise_text
from noisycorr.runtime.errors import UsageError

TURNS = 3  # disturbed pictures for each proposal
SAME_CLASS = 0.5  # cosine of pseudo-classes below which PC2 borrows nothing
FEWEST = 100  # pairs below which no heads are learned

Parts = Sequence[np.ndarray]
Write = Callable[[np.ndarray], list[str]]
Encode = Callable[[list[str]], np.ndarray]
Joint = tuple[Parts, Parts, Callable[[np.ndarray], np.ndarray]]


@dataclass(frozen=True, kw_only=True)
class Repairs:
    """What was proposed for m rows, and what came of it.

    Attributes:
        rows: int (m,).
        donor: int (m,): whose text it is; -1 where a model wrote it, or nothing was proposed.
        texts: New texts; None = nothing was proposed.
        source: Who made each, as `retrieval:agreement`.
        p_old: Probability that the given text fits, by the jury or by p_clean, whichever is higher; NaN without a jury.
        p_new: The same of the new text.
        overlap: Guard `noun_overlap`.
        pmi: Guard `lowest_pmi`.
        steady: Guard `steadiness`.
        guard: object: the guard that speaks against the text, or None.
        action: object: keep, replace, merge, flag, or none where nothing was proposed.
        facts: For the stage record.
    """

    rows: np.ndarray
    donor: np.ndarray
    texts: list[str | None]
    source: str
    p_old: np.ndarray
    p_new: np.ndarray
    overlap: np.ndarray
    pmi: np.ndarray
    steady: np.ndarray
    guard: np.ndarray
    action: np.ndarray
    facts: dict[str, Any] = field(default_factory=dict)


def repair(view: PairEmbeddings, texts: Sequence[str | None], rows: Int[np.ndarray, " m"],
           trust: Float[np.ndarray, " n"], p_clean: Float[np.ndarray, " n"], choice: Recaption, *,
           joint: Joint | None = None, write: Write | None = None,
           encode: Encode | None = None) -> Repairs:  # fmt: skip
    """New texts for some rows.

    Args:
        view: All n pairs.
        texts: Their texts.
        rows: Those that need a text; each has an image, and none is trusted.
        trust: Probability of pairs that may lend their text, 0 for others.
        p_clean: Of all pairs; how much each teaches the heads.
        choice: How.
        joint: Image and text features in a joint space, and the way of new text features (m, e) into it; or None.
        write: A captioner: rows to texts. None borrows texts.
        encode: Texts to features (k, e) by the encoder that made the others; needed by `write` and to merge.

    Raises:
        UsageError: If nobody can be trusted, or there is no encoder where one is needed.
    """
    if not (trust > 0).any():
        raise UsageError("no pair is trusted enough to lend its text or to judge one: lower `trust`.")
    if encode is None and (write is not None or choice.policy == "merge"):
        raise UsageError("new texts must be encoded to be judged, but these pairs came as embeddings without a model.")
    donors = find_donors(view.image, rows, trust, view.image_id, k=choice.donors, same_image=choice.same_image,
                           seed=choice.recaption_seed)  # fmt: skip
    mean = mean_feature(view.text)
    donor = np.full(len(rows), -1)
    if write is None:
        donor = _lend(view, donors, rows, trust, choice, mean)
        new: list[str | None] = [texts[j] if j >= 0 else None for j in donor.tolist()]
        source = f"retrieval:{choice.propose}"
    else:
        new = [text.strip() or None for text in write(rows)]
        source = str(getattr(write, "name", "captioner"))
    if len(new) != len(rows):
        raise UsageError(f"the captioner wrote {len(new)} texts for {len(rows)} pictures.")
    heard = [_heard(texts, ids, j, view) for ids, j in zip(donors.ids, donor.tolist())]
    if choice.policy == "merge":
        new = [merge_texts(t, texts[row], near) if t else t for t, row, near in zip(new, rows.tolist(), heard)]
        source += "+merge"
    feature, known = _features(view, new, donor, encode if write is not None or choice.policy == "merge" else None)
    steady = _steady(view, rows, donor, feature, trust, choice, mean, write, encode)
    p_old, p_new, facts = _judge(view, texts, rows, new, feature, known, donor, trust, p_clean, choice, joint)
    rates = word_rates([texts[j] or "" for j in np.flatnonzero(trust > 0).tolist()])
    overlap = np.array([noun_overlap(t, near) if t else np.nan for t, near in zip(new, heard)])
    pmi = np.array([lowest_pmi(t, near, rates) if t else np.nan for t, near in zip(new, heard)])
    guard = fired(choice, overlap, pmi, steady)
    action = act(choice, p_old, p_new, guard)
    same = [t is not None and normalise_text(t) == normalise_text(texts[r]) for t, r in zip(new, rows.tolist())]
    action[np.array(same, bool)] = "keep"
    action[np.array([text is None for text in new], bool)] = "none"
    return Repairs(rows=rows, donor=donor, texts=new, source=source, p_old=p_old, p_new=p_new, overlap=overlap,
                   pmi=pmi, steady=steady, guard=guard, action=action, facts=facts)  # fmt: skip


def _lend(view: PairEmbeddings, donors: Donors, rows: np.ndarray, trust: np.ndarray, choice: Recaption,
          mean: np.ndarray) -> np.ndarray:  # fmt: skip
    if choice.propose == "nearest":
        return nearest_donor(donors)
    if choice.propose == "agreement":
        return agreeing_donor(donors, view.text, mean)
    trusted = np.flatnonzero(trust > 0)
    theirs = find_donors(view.image, trusted, trust, view.image_id, k=choice.donors, same_image=False,
                          seed=choice.recaption_seed)  # fmt: skip
    return class_donor(donors, theirs, trusted, view.text, view.image, rows, view.image_id, classes=choice.classes,
                        same_image=choice.same_image, threshold=SAME_CLASS, seed=choice.recaption_seed)  # fmt: skip


def _heard(texts: Sequence[str | None], ids: np.ndarray, donor: int, view: PairEmbeddings) -> list[str]:
    """Texts of the neighbours that bear witness: not the donor's, nor those of the picture that it shows."""
    picture = view.image_id[donor] if donor >= 0 else None
    return [t for j in ids.tolist() if j >= 0 and view.image_id[j] != picture and (t := texts[j])]


def _features(view: PairEmbeddings, new: list[str | None], donor: np.ndarray,
              encode: Encode | None) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """float32 (m, e) of the new texts, zeros where there is none, and bool (m,) where there is one."""
    known = np.array([text is not None for text in new], bool)
    out = np.zeros((len(new), view.text[0].shape[1]), np.float32)
    if encode is None:
        out[known] = take(view.text, donor[known])
    elif known.any():
        out[known] = encode([text for text in new if text is not None])
    return out, known


def _steady(view: PairEmbeddings, rows: np.ndarray, donor: np.ndarray, feature: np.ndarray, trust: np.ndarray,
            choice: Recaption, mean: np.ndarray, write: Write | None, encode: Encode | None) -> np.ndarray:  # fmt: skip
    """The perturbation test; NaN everywhere where it is off, or the captioner has no `disturbed`."""
    again = getattr(write, "disturbed", None)
    if choice.guard_steady <= -1 or (write is not None and again is None):
        return np.full(len(rows), np.nan)
    others, base = [], feature
    if encode is not None and (plain := getattr(write, "undisturbed", None)) is not None:
        base = np.where(np.asarray(feature.any(1))[:, None], _said(plain(rows), feature.shape[1], encode), 0)
    for turn in range(TURNS):
        if again is not None and encode is not None:
            other = _said(again(rows, turn), feature.shape[1], encode)
        else:
            shaken = disturb(take(view.image, rows), noise=choice.disturbance, seed=choice.recaption_seed, turn=turn)
            found = find_donors(view.image, rows, trust, view.image_id, k=choice.donors, queries=shaken,
                                 same_image=choice.same_image, seed=choice.recaption_seed)  # fmt: skip
            other = _features(view, *_as_texts(_lend(view, found, rows, trust, choice, mean)), None)[0]
        others.append(other)
    return np.where(feature.any(1), steadiness(base, others, mean), np.nan)


def _said(texts: list[str], width: int, encode: Encode) -> Float[np.ndarray, "m e"]:
    """Features of texts; zeros where there is none."""
    out, some = np.zeros((len(texts), width), np.float32), np.array([bool(text.strip()) for text in texts], bool)
    if some.any():
        out[some] = encode([text.strip() for text in texts if text.strip()])
    return out


def _as_texts(donor: np.ndarray) -> tuple[list[str | None], np.ndarray]:
    return ["" if j >= 0 else None for j in donor.tolist()], donor


def _judge(view: PairEmbeddings, texts: Sequence[str | None], rows: np.ndarray, new: list[str | None],
           feature: np.ndarray, known: np.ndarray, donor: np.ndarray, trust: np.ndarray, p_clean: np.ndarray,
           choice: Recaption, joint: Joint | None) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:  # fmt: skip
    """Probabilities of given and new texts by scorers that saw neither, and facts."""
    fold = judging_folds(view, 5)
    scorers: dict[str, Scorer] = {}
    if int(view.present.sum()) >= FEWEST:
        scorers["heads"] = fold_scorer(view, np.nan_to_num(p_clean), fold)
    if joint is not None:
        scorers["joint"] = joint_scorer(view, joint[0], joint[2], joint[1])
    if not scorers:
        raise UsageError(f"{int(view.present.sum())} pairs are too few to judge new texts; {FEWEST} are needed.")
    jury = call_jury(view, scorers, fold, aggregate=choice.aggregate, penalty=choice.penalty)  # type: ignore[arg-type]
    p_old, p_new = np.full(len(rows), np.nan), np.full(len(rows), np.nan)
    facts = {"jury": jury.facts | {"separation_together": jury.fit.separation, "warning": jury.fit.warning}}
    if not jury.scorers or jury.fit.kind == "constant":
        return p_old, p_new, facts
    ids = dict(zip((normalise_text(text) for text in texts), view.text_id.tolist()))
    new_id = np.array([ids.get(normalise_text(text), -2) for text in new])
    taught = np.where(donor >= 0, fold[np.maximum(donor, 0)], fold[rows])
    given = take(view.text, rows).astype(np.float32)
    p_old = jury(Asked(rows, given, view.text_id[rows], taught))
    p_old = np.fmax(p_old, np.where(np.isfinite(p_old), p_clean[rows], np.nan))  # it gets the benefit of the doubt
    if not known.any():
        return p_old, p_new, facts
    asked = Asked(rows[known], feature[known], new_id[known], taught[known])
    p_new[known], own = judge_new(jury, asked, choice.recaption_seed)
    told = {"separation": own.separation, "share_wrong": own.noise_rate}
    facts["new"] = {name: round(value, 4) if np.isfinite(value) else None for name, value in told.items()}
    return p_old, p_new, facts
