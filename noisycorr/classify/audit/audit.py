"""Audit of a labelled set: embed as `clean` does, judge every label, decide, report. No training.

Stages: `embed` (shared with `clean`), `audit_score` (all signals to scores/), `audit` (verdicts to ledger/), and
`audit_report`. Each is skipped where its inputs are unchanged, so the same command continues after a kill, and another
threshold re-decides in seconds.
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from noisycorr.classify.audit.class_list import ClassList, Labels, plain_name, read_classes, resolve_labels
from noisycorr.classify.audit.label_verdict import LabelRule, label_verdicts
from noisycorr.classify.audit.label_votes import linear_split, small_loss
from noisycorr.classify.audit.labels import Audit, Audited, LabelView, audit_labels, class_probabilities
from noisycorr.classify.classes import cut_note
from noisycorr.classify.confident import confident_joint, label_issues, overlapping_classes, self_confidence
from noisycorr.classify.prototypes import Prototypes, match, prepare_text, text_prototypes
from noisycorr.clean.pipeline import each_part, embed_stage
from noisycorr.clean.plan import Plan, open_plan
from noisycorr.clean.signals.duplicates import DuplicateGroups, Duplicates, group_names, near_duplicates
from noisycorr.data.readers.given import load_array
from noisycorr.data.store import open_features, pairs_path, part_ranges, read_facts, read_scores
from noisycorr.models.encoders import DualEncoder, encode_texts
from noisycorr.runtime import console, dist
from noisycorr.runtime.errors import UsageError
from noisycorr.runtime.folder import AUDIT_CONFIG, Run, atomic_path, fingerprint, fingerprint_file
from noisycorr.runtime.lock import refuse_other_kind
from noisycorr.runtime.stage import decided_with, run_stage, say, write_yaml

CONFIDENT = 50_000_000  # rows x classes up to which confident learning runs beside
SMALL = 50_000  # rows up to which the plane of LSA is learned
REPEATS = 0.9  # share of texts that only repeat the label, from which texts are no evidence


@dataclass(frozen=True, kw_only=True)
class AuditPlan:
    """All choices of an audit.

    Attributes:
        embedding: Source and encoder, as of `clean`.
        classes: File of the classes.
        label_col: Column of the labels, or None to find it.
        class_embeddings: .npy with one row for each definition, where embeddings came with the source; or None.
        audit: How labels are judged.
        rule: What to do with them.
    """

    embedding: Plan
    classes: str
    label_col: str | None = None
    class_embeddings: str | None = None
    audit: Audit = field(default_factory=Audit)
    rule: LabelRule = field(default_factory=LabelRule)


def audit(plan: AuditPlan, run: Run, *, overwrite: bool = False) -> None:
    """Run all stages; finished ones are skipped.

    Raises:
        UsageError: If classes or labels do not fit, or the folder holds other data.
    """
    refuse_other_kind(run.folder, "embed_started", "embed")
    classes = read_classes(Path(plan.classes))
    # A list that cannot be read is told before hours of embedding, not after them.
    embed_stage(plan.embedding, run, overwrite=overwrite)
    if not dist.is_main():
        return
    _take_over(run)
    _write_config(plan, run)
    inputs = {
        "embed": (run.stage("embed") or {})["fingerprint"],
        "classes": dataclasses.asdict(classes), "label_col": plan.label_col, "audit": dataclasses.asdict(plan.audit),
        "class_embeddings": fingerprint_file(Path(plan.class_embeddings)) if plan.class_embeddings else None,
    }  # fmt: skip
    run_stage(run, "audit_score", inputs, lambda: _score(plan, classes, run), each_part(run, "scores"))
    for line in (run.stage("audit_score") or {})["facts"]["warnings"]:
        console.warn(f"warning: {line}")
    scored = (run.stage("audit_score") or {})["fingerprint"]
    run_stage(run, "audit", {"audit_score": scored, "rule": dataclasses.asdict(plan.rule)},
          lambda: _decide(plan.rule, run), each_part(run, "ledger"))  # fmt: skip
    for line in (run.stage("audit") or {})["facts"]["summary"]:
        say(line)
    report(run)


def _take_over(run: Run) -> None:
    """What `clean` scored and decided in this folder goes: both write to scores/ and ledger/."""
    stages = [run.folder / "stages" / f"{name}.json" for name in ("report", "decide", "score")]
    if any(path.exists() for path in stages):
        for path in (*(run.folder / "stages" / f"audit{name}.json" for name in ("_report", "", "_score")), *stages):
            path.unlink(missing_ok=True)


def _write_config(plan: AuditPlan, run: Run) -> None:
    """audit.yaml: the flags of this audit, for `noisycorr audit --config`; config.yaml holds those of the embedding."""
    body = {"output_folder": str(run.folder), "classes": plan.classes, "label_col": plan.label_col,
            "class_embeddings": plan.class_embeddings}  # fmt: skip
    for part in (plan.embedding.source, plan.embedding.embed, plan.audit, plan.rule):
        body |= dataclasses.asdict(part)
    write_yaml(run.path(AUDIT_CONFIG), body)


def report(run: Run) -> None:
    """report.html and report.json of an audited run."""
    from noisycorr.classify.audit.report import write_audit_report

    path = run.folder / AUDIT_CONFIG
    shown = path.read_text(encoding="utf-8") if path.exists() else ""  # the page holds it
    inputs = {"audit": decided_with(run, "audit", "audit_score")["fingerprint"], "config": fingerprint(shown)}
    run_stage(
        run, "audit_report", inputs, lambda: {"file": write_audit_report(run).name}, ["report.html", "report.json"]
    )
    say(f"report: {run.folder / 'report.html'}")


def _score(plan: AuditPlan, classes: ClassList, run: Run) -> dict[str, Any]:
    facts = read_facts(run, ["key", "uid", "text", "columns", "problem", "image_hash", "image_phash"])
    if not len(facts):
        raise UsageError(f"{run.folder} holds no rows, because the source is empty: choose another one.")
    texts = facts.column("text").to_pylist()
    picked = (run.stage("embed") or {})["inputs"]["picked"]
    rows = [{**({picked["text"]: text} if "text" in picked else {}), **json.loads(columns or "{}")}
            for text, columns in zip(texts, facts.column("columns").to_pylist())]  # fmt: skip
    labels = resolve_labels(rows, classes, plan.label_col, plan.embedding.source.path)
    has_text, warnings = _donors(texts, labels, picked)
    say(f"labels: column {labels.column}, {len(classes.names):,} classes" + (f"; {labels.note}" if labels.note else ""))
    _, encoder = open_plan(plan.embedding)
    prototypes, notes = _prototypes(plan, classes, encoder)
    warnings += _class_notes(classes, labels) + notes
    groups = near_duplicates(open_features(run, "image"), open_features(run, "text"),
                             facts.column("image_hash").to_pylist(), facts.column("image_phash").to_pylist(), texts,
                             choice=Duplicates())  # fmt: skip
    view = _view(run, labels, has_text, groups, prototypes, encoder)
    if labels.tags is not None:
        from noisycorr.classify.audit.tags import audit_tags

        audited = audit_tags(view, labels.tags, plan.audit)
    else:
        audited = audit_labels(view, plan.audit)
    more, counted = _beside(view, plan.audit) if labels.tags is None else ({}, {})
    own = match(np.concatenate([np.asarray(part, np.float32) for part in view.text]), prototypes, labels.one)
    _write(run, "scores", _table(audited, more, labels, classes, facts, groups, own.sense))
    if audited.fit.warning:
        warnings.append(audited.fit.warning)
    return {"warnings": warnings, "column": labels.column, "classes": list(classes.names), **audited.facts, **counted,
            "rows": len(texts), "senses": [list(senses) for senses in classes.senses],
            "multi_label": labels.tags is not None}  # fmt: skip


def _donors(texts: Sequence[str | None], labels: Labels, picked: dict[str, Any]) -> tuple[np.ndarray, list[str]]:
    """Which texts can be lent, and what to tell: a text that only repeats the label is no evidence for it."""
    ready = [prepare_text(text) for text in texts]
    has = np.array([bool(text) for text in ready])
    if picked.get("text") == labels.column:
        return np.zeros(len(texts), bool), ["the text column is the label column: texts are not used as evidence"]
    same = [plain_name(text or "") == plain_name(raw) for text, raw in zip(texts, labels.raw)]
    if has.any() and np.mean(np.array(same)[has]) >= REPEATS:
        return np.zeros(len(texts), bool), ["texts only repeat the labels: they are not used as evidence"]
    if not has.any():
        return has, ["all texts are blank: labels are judged by pictures alone"]
    return has, []


def _prototypes(plan: AuditPlan, classes: ClassList, encoder: DualEncoder) -> tuple[Prototypes, list[str]]:
    """Vectors of all definitions, and how many are longer than the encoder reads."""
    texts, owner = classes.texts
    if plan.class_embeddings is not None:
        try:
            features = load_array(Path(plan.class_embeddings))
        except ValueError as error:
            raise UsageError(f"`class_embeddings` {plan.class_embeddings} could not be read: {error}.") from error
        if features.shape != (len(texts), encoder.text_dim):
            raise UsageError(f"`class_embeddings` {plan.class_embeddings} has shape {features.shape}, expected a row "
                             f"for each definition: ({len(texts)}, {encoder.text_dim}).")  # fmt: skip
        return text_prototypes(features, owner, len(classes.names)), []
    if encoder.name.startswith("precomputed"):
        raise UsageError("The source brings embeddings, so that definitions cannot be encoded: give theirs with "
                         "`class_embeddings` FILE.npy, one row for each definition.")  # fmt: skip
    features = encode_texts(encoder, texts)
    notes = cut_note(texts, encoder)
    return text_prototypes(features, owner, len(classes.names)), notes


def _class_notes(classes: ClassList, labels: Labels) -> list[str]:
    """Classes without definition, without a row or with one, and labels that are not in the list."""
    count = np.zeros(len(classes.names), int)
    for places in labels.tags or [(one,) for one in labels.one if one >= 0]:
        count[list(places)] += 1
    out = []
    if classes.undefined:
        out.append(f"{len(classes.undefined)} classes have no definition, their name stands in for it, for example "
                   f"{classes.undefined[0]!r}")  # fmt: skip
    for size, what in ((0, "no row"), (1, "a single row, which cannot be judged by others of its class")):
        if (count == size).any():
            some = classes.names[int(np.flatnonzero(count == size)[0])]
            out.append(f"{int((count == size).sum())} classes have {what}, for example {some!r}")
    unknown = Counter(raw for raw, one in zip(labels.raw, labels.one) if raw and one < 0)
    if unknown:
        out.append(
            f"{unknown.total():,} labels are not in the class list, for example {unknown.most_common(1)[0][0]!r}"
        )
    if missing := sum(not raw for raw in labels.raw):
        out.append(f"{missing:,} rows have no label")
    return out


def _view(run: Run, labels: Labels, has_text: np.ndarray, groups: DuplicateGroups, prototypes: Prototypes,
          encoder: DualEncoder) -> LabelView:  # fmt: skip
    image, text, start = open_features(run, "image"), [], 0
    for part in open_features(run, "text"):
        text.append(np.where(has_text[start : start + len(part), None], part, 0).astype(part.dtype))
        start += len(part)
    joint = None
    if encoder.joint:
        joint = (image, prototypes)
    elif encoder.name.startswith("embedded"):
        sides = [encoder.joint_space(np.asarray(part, np.float32), prototypes.vectors) for part in image]
        classes = text_prototypes(sides[0][1], prototypes.owner, prototypes.count)
        joint = ([one.astype(np.float16) for one, _ in sides], classes)
    n = len(labels.one)
    return LabelView(image=image, text=text, labels=labels.one, prototypes=prototypes, joint=joint,
                     group=np.where(groups.image >= 0, groups.image, np.arange(n)))  # fmt: skip


def _beside(view: LabelView, choice: Audit) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Confident learning, small loss and the plane of LSA, as columns beside; they do not decide."""
    n, c = len(view.labels), view.prototypes.count
    rows = np.flatnonzero((view.labels >= 0) & np.concatenate([np.asarray(part).any(axis=1) for part in view.image]))
    if n * c > CONFIDENT:
        return {}, {"confident": None}
    p = class_probabilities(view.image, view.labels, view.group, c, folds=choice.folds, seed=choice.seed)[rows]
    joint, y = confident_joint(p, view.labels[rows]), view.labels[rows]
    columns = {name: np.full(n, np.nan, np.float32) for name in ("self_confidence", "small_loss", "in_set")}
    own = self_confidence(p, y)
    columns["self_confidence"][rows] = own
    columns["small_loss"][rows] = small_loss(-np.log(np.maximum(own, 1e-12)), seed=choice.seed)
    if n <= SMALL:
        from noisycorr.clean.signals.crossfit import deal_folds, reduce_width

        fold = deal_folds(view.group, choice.folds, choice.seed)
        split = linear_split(reduce_width(view.image, 128)[rows], columns["small_loss"][rows] > 0.5, fold[rows])
        columns["in_set"][rows] = split
    issue = np.zeros(n, bool)
    issue[rows] = label_issues(p, y)
    facts = {"rate": round(joint.noise_rate, 4), "issues": int(issue.sum()), "warning": joint.warning,
             "overlaps": [list(item) for item in overlapping_classes(joint)]}  # fmt: skip
    return {**columns, "confident_issue": issue}, {"confident": facts}


def _table(audited: Audited, more: dict[str, np.ndarray], labels: Labels, classes: ClassList, facts: pa.Table,
           groups: DuplicateGroups, sense: np.ndarray) -> pa.Table:  # fmt: skip
    names = np.array([*classes.names, None], object)
    keys = np.array([*facts.column("key").to_pylist(), None], object)
    text = {
        name: pa.array(values, pa.string())
        for name, values in zip(
            ("near_duplicate_group", "group_kind"), group_names(groups, facts.column("uid").to_pylist())
        )
    }
    lent = [[key for key in keys[row] if key is not None] for row in audited.donors]
    issue = more.pop("confident_issue", None)
    columns: dict[str, Any] = {"score_label": audited.score}
    columns |= {f"score_{name}": values for name, values in {**audited.columns, **more}.items()}
    columns |= {"p_clean": audited.p_right, "label": pa.array(labels.raw, pa.string()), "label_id": labels.one,
                "label_proposed": pa.array(names[audited.other], pa.string()), "p_proposed": audited.p_other,
                "proposed_id": audited.other, "out_of_set": audited.outside, "energy": audited.energy,
                "text_class": pa.array(names[audited.text_class], pa.string()), "text_class_id": audited.text_class,
                "named_id": audited.named,
                "text_support": audited.support, "text_donors": pa.array(lent, pa.list_(pa.string())),
                "sense": sense, "near_duplicate_score": groups.score, **text}  # fmt: skip
    if issue is not None:
        columns["is_confident_issue"] = issue
    if (tags := audited.facts.pop("tags_kept", None)) is not None:
        known = [" | ".join(classes.names[i] for i in one) for one in labels.tags or []]
        kept = [" | ".join(classes.names[i] for i in sorted(one)) for one in tags]
        fixed = [raw if before == after else after for raw, before, after in zip(labels.raw, known, kept)]
        columns["tags_rectified"] = pa.array(fixed, pa.string())
    return pa.table(columns)


def _decide(rule: LabelRule, run: Run) -> dict[str, Any]:
    scores, facts = read_scores(run), read_facts(run, ["problem", "text"])
    known = (run.stage("audit_score") or {})["facts"]
    audited = _stored(scores)
    raw = [value or "" for value in scores.column("label").to_pylist()]
    columns = label_verdicts(audited, rule, known["classes"], raw, facts.column("problem").to_pylist())
    if "tags_rectified" in scores.column_names:
        columns = _tag_verdicts(columns, scores.column("tags_rectified").to_pylist(), raw)
    n = len(scores)
    nothing = pa.nulls(n, pa.string())
    table = scores.drop_columns(["label_id", "proposed_id", "text_class_id", "named_id", "energy", "sense"])
    for name, value in {
        "image_issue": nothing, "text_issue": nothing, "is_label_issue": columns["is_label_issue"],
        "is_mismatch_issue": columns["is_label_issue"],
        "label_rectified": pa.array(columns["label_rectified"], pa.string()),
        "verdict": pa.array(columns["verdict"], pa.string()), "reason": pa.array(columns["reason"], pa.string()),
        "rule": pa.array([rule.rule] * n, pa.string()), "stage": pa.array(["audit"] * n, pa.string()),
        "sample_weight": columns["sample_weight"], "row": np.arange(n),
    }.items():  # fmt: skip
        table = table.append_column(name, value if isinstance(value, pa.Array) else pa.array(value))
    texts = _texts_rectified(facts.column("text").to_pylist(), raw, columns)
    if any(texts):  # export and train read it as the text of the row
        table = table.append_column("text_rectified", pa.array(texts, pa.string()))
    _write(run, "ledger", table, first=["key", "uid", "text"])
    count = dict(sorted(Counter(map(str, columns["verdict"])).items()))
    summary = [f"{n:,} rows in, {n:,} in the ledger: " + ", ".join(f"{c:,} {v}" for v, c in count.items())]
    if known.get("noise_rate") is not None:
        summary.append(f"estimated share of wrong labels: {known['noise_rate']:.1%}")
    return {"verdicts": count, "summary": summary, "rule": rule.rule, "p_threshold": rule.p_threshold}


def _tag_verdicts(columns: dict[str, Any], fixed: list[str | None], raw: list[str]) -> dict[str, Any]:
    """Of rows with several labels the rectified set stands in the ledger; a row is changed where the set is."""
    for i, value in enumerate(fixed):
        if value is not None and value != raw[i] and columns["verdict"][i] != "drop":
            columns["verdict"][i] = "relabel" if value else "review"
            columns["reason"][i] = f"labels {raw[i]!r} become {value!r}" if value else f"no label of {raw[i]!r} fits"
            columns["label_rectified"][i] = value or None
    return columns


def _texts_rectified(texts: list[str | None], raw: list[str], columns: dict[str, Any]) -> list[str | None]:
    """The new label as the text of a changed row whose text only repeats the label, such as the name of its folder."""
    return [
        fixed if verdict == "relabel" and plain_name(text or "") == plain_name(label) else None
        for text, label, verdict, fixed in zip(texts, raw, columns["verdict"], columns["label_rectified"])
    ]


def _stored(scores: pa.Table) -> Audited:
    """What the score stage found, as far as verdicts need it."""
    from noisycorr.stats.mixture import constant_fit

    get = {name: scores.column(column).to_numpy() for name, column in
           (("score", "score_label"), ("p_right", "p_clean"), ("other", "proposed_id"), ("p_other", "p_proposed"),
            ("outside", "out_of_set"), ("energy", "energy"), ("text_class", "text_class_id"), ("named", "named_id"),
            ("support", "text_support"))}  # fmt: skip
    return Audited(columns={}, donors=np.zeros((len(scores), 0), int), fit=constant_fit(""), channel=None, facts={},
                   **get)  # fmt: skip


def _write(run: Run, folder: str, table: pa.Table, first: Sequence[str] = ()) -> None:
    for index, start, size in part_ranges(run):
        part = table.slice(start, size)
        if first:
            known = pq.read_table(pairs_path(run, index), columns=list(first))
            part = pa.table({**{name: known.column(name) for name in first},
                             **{name: part.column(name) for name in part.column_names}})  # fmt: skip
        with atomic_path(run.path(folder, f"{index:05d}.parquet")) as path:
            pq.write_table(part, path, compression="zstd")
