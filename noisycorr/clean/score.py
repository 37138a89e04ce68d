"""The score stage: stored embeddings and facts in, one row of scores and issues for each pair out.

Writes `scores/NNNNN.parquet` beside `pairs/NNNNN.parquet`, and `scores/fit.json` with the calibration curve.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from noisycorr.clean.signals.duplicates import DuplicateGroups, group_names, near_duplicates, search_sides
from noisycorr.clean.signals.image_issues import image_issues
from noisycorr.clean.signals.pipeline import Heads, Scored, score_pairs
from noisycorr.clean.signals.sides import Side
from noisycorr.clean.signals.text_issues import shared_text_alikeness, text_issues
from noisycorr.clean.signals.view import PairEmbeddings
from noisycorr.data.columns import Column, codes, release
from noisycorr.data.noise.swaps import text_ids
from noisycorr.data.store import open_facts, open_features, pairs_path, part_ranges
from noisycorr.models.encoders import load_encoder
from noisycorr.runtime import dist
from noisycorr.runtime.errors import UsageError
from noisycorr.runtime.folder import Run, atomic_path, read_json, write_json
from noisycorr.stats.mixture import Fit

if TYPE_CHECKING:
    from noisycorr.clean.plan import Plan

FACTS = ["problem", "image_hash", "width", "height", "image_std", "image_entropy", "image_edges"]  # of an image
Features = list[np.ndarray]


def score_run(plan: Plan, run: Run, heads_of: Heads | None = None) -> dict[str, Any]:
    """Score every pair of a run.

    Args:
        plan: Its choices.
        run: A folder whose embed stage is done.
        heads_of: Further heads for `align trained`, as `score_pairs` takes them.

    Returns:
        Facts for the stage record.

    Raises:
        UsageError: If there is not a single pair.
    """
    embedded = (run.stage("embed") or {})["facts"]
    loaded = load_pairs(plan, run)
    view = loaded.view
    learn = plan.score.align in ("cross-fit", "trained") or (plan.score.align == "auto" and not embedded["joint"])
    scored = score_pairs(view, joint_features(plan, embedded, view), plan.score, learn=learn, heads_of=heads_of,
                         sides=loaded.sides)  # fmt: skip
    _write(run, _columns(plan, run, loaded, scored, embedded))
    write_json(run.path("scores", "fit.json"), _fit_json(scored))
    facts = {"pairs": view.n, "duplicates": loaded.groups.method, "noise_rate": _number(scored.fit.noise_rate)}
    return scored.facts | facts


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """All n pairs of a run as scorers see them.

    Attributes:
        texts: Their texts, read as often as they are gone through.
        has_image: bool (n,): there are features of an image.
        has_text: bool (n,): of a text.
        groups: Near-duplicates.
        view: What scorers see.
        sides: What was found among images and among texts; None without a search for near-duplicates.
    """

    texts: Column
    has_image: np.ndarray
    has_text: np.ndarray
    groups: DuplicateGroups
    view: PairEmbeddings
    sides: tuple[Side, Side] | None

    @property
    def text_id(self) -> np.ndarray:
        """int64 (n,) of `text_ids`: as those of the view, but -1 for texts that are not known."""
        return np.where(self.view.text_id < self.view.n, self.view.text_id, -1)


def load_pairs(plan: Plan, run: Run) -> Loaded:
    """Facts, features and near-duplicates of a run whose embed stage is done.

    Raises:
        UsageError: If there is not a single pair.
    """
    texts = open_facts(run, "text")
    if not len(texts):
        raise UsageError(f"{run.folder} holds no pairs, because the source is empty: choose another one.")
    image, text = open_features(run, "image"), open_features(run, "text")
    has_image, has_text = _present(image), _present(text)
    hashes = open_facts(run, "image_hash")
    image_code, text_id = codes(hashes), text_ids(texts)
    sides = None
    if plan.score.near_duplicates:
        most = max(plan.duplicates.neighbors, plan.score.neighbors)
        sides = search_sides(image, text, image_code, text_id, most, seed=plan.score.seed,
                             target_recall=plan.score.target_recall)  # fmt: skip
    copies = _same(image_code)
    del image_code
    groups = _groups(plan, run, image, text, texts, hashes, copies, sides)
    view = PairEmbeddings(
        image=image,
        text=text,
        text_id=_all_numbered(text_id),
        image_id=_own_row(groups.image),
        present=has_image & has_text,
        seed=plan.score.seed,
        picture=_own_row(copies),
    )
    return Loaded(texts=texts, has_image=has_image, has_text=has_text, groups=groups, view=view,
                  sides=sides)  # fmt: skip


def _all_numbered(text_id: np.ndarray) -> np.ndarray:
    """Texts that are not known, as with some precomputed embeddings, get numbers >= n and are all different."""
    return np.where(text_id < 0, len(text_id) + np.arange(len(text_id)), text_id)


def _present(parts: Features) -> np.ndarray:
    """bool (n,): rows that are not all zeros, by their bits, which is ten times faster than in floating point."""
    out = []
    for part in parts:
        bits = np.ascontiguousarray(part).view(np.uint16 if part.dtype == np.float16 else np.uint32)
        out.append(np.left_shift(bits, 1).any(axis=1))  # the shift drops the sign: minus zero is zero
        release(part)
    return np.concatenate(out) if out else np.zeros(0, bool)


def _groups(
    plan: Plan, run: Run, image: Features, text: Features, texts: Column, hashes: Column,
    copies: np.ndarray, sides: tuple[Side, Side] | None,
) -> DuplicateGroups:  # fmt: skip
    """Near-duplicates, or exact copies only if the search is switched off."""
    if plan.score.near_duplicates:
        phash = open_facts(run, "image_phash")
        return near_duplicates(image, text, hashes, phash, texts, choice=plan.duplicates, sides=sides)
    by_image, by_text = copies, _same(codes(t.strip() or None if t else None for t in texts))
    code = np.where((by_image >= 0) & (by_text >= 0), by_image * len(by_text) + by_text, -1)
    _, first, inverse, counts = np.unique(code, return_index=True, return_inverse=True, return_counts=True)
    both = np.where((code >= 0) & (counts[inverse] > 1), first[inverse], -1)
    score = np.where(both >= 0, 0.0, 1.0).astype(np.float32)
    return DuplicateGroups(image=by_image, text=by_text, pair=both, score=score, method="exact copies only")


def _same(code: np.ndarray) -> np.ndarray:
    """int64 (n,): first row with the same number; -1 where that is -1, and for numbers that stand once."""
    _, first, back, counts = np.unique(code, return_index=True, return_inverse=True, return_counts=True)
    return np.where((code >= 0) & (counts[back] > 1), first[back], -1)


def _own_row(group: np.ndarray) -> np.ndarray:
    """The group of each row, or the row itself where it has none."""
    return np.where(group >= 0, group, np.arange(len(group)))


def joint_features(plan: Plan, embedded: dict[str, Any], view: PairEmbeddings) -> tuple[Features, Features] | None:
    """Features whose cosine means alignment without training; None where the encoder has none.

    Args:
        plan: Names the encoder.
        embedded: Facts of the embed stage.
        view: The pairs.
    """
    image, text = list(view.image), list(view.text)
    if embedded["joint"]:
        return image, text
    if embedded["encoder"].split("@")[0].startswith("embedded"):
        encoder = load_encoder(plan.embed.clip_model, device=dist.device(), precision=plan.embed.model_precision)
        both = [encoder.joint_space(np.asarray(i, np.float32), np.asarray(t, np.float32)) for i, t in zip(image, text)]
        return [i.astype(np.float16) for i, _ in both], [t.astype(np.float16) for _, t in both]
    return None


def _columns(plan: Plan, run: Run, loaded: Loaded, scored: Scored, embedded: dict[str, Any]) -> pa.Table:
    texts, groups, view, alike = loaded.texts, loaded.groups, loaded.view, None
    if plan.score.near_duplicates:
        alike = shared_text_alikeness(loaded.text_id, list(view.image), image_groups=groups.image,
                                      at_least=plan.text_limits.boilerplate_images, seed=plan.score.seed)  # fmt: skip
    text_score, text_issue = text_issues(texts, plan.text_limits, alikeness=alike)
    unseen = loaded.has_text & (text_issue == "empty")  # precomputed embeddings of texts that did not come with them
    text_score[unseen], text_issue[unseen] = 1, None
    image_score, image_issue, area = _image_columns(plan, run, loaded.has_image)
    names, kinds = group_names(groups, open_facts(run, "uid"))
    columns: dict[str, Any] = {f"score_{name}": values for name, values in scored.columns.items()}
    if embedded.get("score_column") and "similarity" in scored.columns:
        columns[embedded["score_column"]] = scored.columns["similarity"]
    columns |= {"image_score": image_score, "image_issue": pa.array(image_issue, pa.string())}
    columns |= {"text_score": text_score, "text_issue": pa.array(text_issue, pa.string())}
    columns |= {"near_duplicate_group": pa.array(names, pa.string()), "group_kind": pa.array(kinds, pa.string())}
    columns |= {"near_duplicate_score": groups.score, "pair_group": groups.pair, "area": area}
    return pa.table(columns)


def _image_columns(plan: Plan, run: Run, has_image: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """image_score, image_issue and the number of pixels (0 = unknown), each (n,), piece by piece."""
    scores, issues, areas = [np.zeros(0, np.float32)], [np.zeros(0, object)], [np.zeros(0)]
    for index, start, size in part_ranges(run):
        facts = pq.read_table(pairs_path(run, index), columns=FACTS)
        score, issue = image_issues(facts, plan.image_limits, present=has_image[start : start + size])
        width, height = (facts.column(name).to_numpy().astype(np.float64) for name in ("width", "height"))
        for column, values in ((scores, score), (issues, issue), (areas, np.nan_to_num(width * height))):
            column.append(values)
    return np.concatenate(scores), np.concatenate(issues), np.concatenate(areas)


def _write(run: Run, table: pa.Table) -> None:
    for index, start, size in part_ranges(run):
        with atomic_path(run.path("scores", f"{index:05d}.parquet")) as path:
            pq.write_table(table.slice(start, size), path, compression="zstd")


def read_fit(run: Run) -> Fit:
    """The calibration curve of the score stage."""
    raw = read_json(run.folder / "scores" / "fit.json")["fit"]
    numbers = {
        name: float("nan") if raw[name] is None else raw[name] for name in ("noise_rate", "low", "high", "separation")
    }
    return Fit(
        kind=raw["kind"], score=np.array(raw["score"]), p_clean=np.array(raw["p_clean"]), warning=raw["warning"],
        parameters=raw["parameters"], **numbers,
    )  # fmt: skip


def _fit_json(scored: Scored) -> dict[str, Any]:
    fit = scored.fit
    body = {
        "kind": fit.kind,
        "score": [float(x) for x in fit.score],
        "p_clean": [float(x) for x in fit.p_clean],
        "noise_rate": _number(fit.noise_rate),
        "low": fit.low,
        "high": fit.high,
        "separation": _number(fit.separation),
        "warning": fit.warning,
        "parameters": fit.parameters,
    }
    return json.loads(json.dumps({"fit": body, "density": _density(scored)}))


def _density(scored: Scored) -> dict[str, list[float]]:
    """Densities of given pairs and, scaled by the noise rate, of the re-paired ones, for the picture in the report."""
    given, null = (x[np.isfinite(x)] for x in (scored.pair.given, scored.pair.null))
    if len(given) < 20 or len(null) < 20 or not np.isfinite(scored.fit.noise_rate):
        return {}
    low, high = np.quantile(np.concatenate([given, null]), [0.002, 0.998])
    if not high > low:
        return {}
    edges = np.linspace(low, high, 81)
    total, _ = np.histogram(given, edges, density=True)
    noise, _ = np.histogram(null, edges, density=True)
    noise = np.minimum(noise * scored.fit.noise_rate, total)
    middle = (edges[1:] + edges[:-1]) / 2
    return {
        "x": middle.tolist(), "total": total.tolist(), "noise": noise.tolist(), "clean": (total - noise).tolist(),
    }  # fmt: skip


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
