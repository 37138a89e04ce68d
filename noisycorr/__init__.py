"""noisycorr: which image-text pairs are wrong, how sure we are, and what to do about it.

    import noisycorr as nc

    run = nc.clean("sample")                # or a folder, shards, a DataFrame, a Hugging Face dataset
    run.summary; run.to_pandas(); run.explain(key); run.decide(precision=0.95); run.export("webdataset", "cleaned")
    model = nc.train(run)

Nothing heavy is imported before it is used.
"""

from __future__ import annotations

import functools
import importlib
import sys
import types
from os import PathLike
from pathlib import Path
from typing import Any

from noisycorr.runtime.version import __version__ as __version__

_PLACES = {  # name: where it is
    "AuditRun": "noisycorr.classify.audit.result",
    "BenchResult": "noisycorr.clean.bench",
    "Captioner": "noisycorr.caption.result",
    "Classifier": "noisycorr.classify.webly.result",
    "CleanRun": "noisycorr.clean.result",
    "Loss": "noisycorr.models.training.contract",
    "PromptedClassifier": "noisycorr.prompt.result",
    "RetrievalModel": "noisycorr.retrieval.result",
    "Strategy": "noisycorr.models.training.contract",
    "Trust": "noisycorr.models.training.contract",
    "TunedHeads": "noisycorr.classify.heads.result",
    "annotate": "noisycorr.classify.verbs",
    "audit": "noisycorr.classify.verbs",
    "bench_caption": "noisycorr.caption.bench",
    "bench_noise": "noisycorr.retrieval.bench",
    "bench_prompt": "noisycorr.prompt.bench",
    "bench_webly": "noisycorr.classify.webly.bench",
    "caption_score": "noisycorr.caption.verbs",
    "check_strategy": "noisycorr.retrieval.testing",
    "doctor": "noisycorr.clean.verbs",
    "embed": "noisycorr.clean.verbs",
    "generate_captions": "noisycorr.caption.verbs",
    "inject": "noisycorr.clean.verbs",
    "losses": "noisycorr.models.losses",
    "recaption": "noisycorr.caption.verbs",
    "report": "noisycorr.__main__",
    "run": "noisycorr.__main__",
    "status": "noisycorr.clean.verbs",
    "train": "noisycorr.retrieval.verbs",
    "train_captioner": "noisycorr.caption.verbs",
    "tune": "noisycorr.classify.verbs",
}
_RESULTS = {  # what a folder holds, by the marker that its work writes first: the last that is there counts
    "bench": ("noisycorr.clean.bench", "BenchResult"),
    "embed_started": ("noisycorr.clean.result", "CleanRun"),
    "embed": ("noisycorr.clean.result", "CleanRun"),
    "train_started": ("noisycorr.retrieval.result", "RetrievalModel"),
    "caption_started": ("noisycorr.caption.result", "Captioner"),
    "generate": ("noisycorr.caption.result", "Captions"),
    "audit": ("noisycorr.classify.audit.result", "AuditRun"),
    "classify_started": ("noisycorr.classify.webly.result", "Classifier"),
    "tune_started": ("noisycorr.classify.heads.result", "TunedHeads"),
    "prompt_started": ("noisycorr.prompt.result", "PromptedClassifier"),
}
_SCORERS = {  # functions of `nc.score`: where they are
    "clip_score": "noisycorr.clean.scorers",
    "cosine": "noisycorr.clean.scorers",
    "crossfit": "noisycorr.clean.scorers",
    "csls": "noisycorr.clean.scorers",
    "label_issues": "noisycorr.classify.confident",
    "label_quality": "noisycorr.classify.confident",
    "lemon": "noisycorr.clean.scorers",
    "margin": "noisycorr.clean.scorers",
    "negclip_loss": "noisycorr.clean.scorers",
    "negclip_terms": "noisycorr.clean.scorers",
    "neighbor_agreement": "noisycorr.clean.scorers",
    "p_clean": "noisycorr.clean.scorers",
    "shuffled_rows": "noisycorr.clean.scorers",
}
_PACKAGES = {
    "clean": "noisycorr.clean.verbs",
    "classify": "noisycorr.classify.verbs",
    "prompt": "noisycorr.prompt.verbs",
}  # folders that are called like what they do: they can be called, too
__all__ = sorted([*_PLACES, *_PACKAGES, "__version__", "open_run", "score"])  # noqa: PLE0605  # made of the tables


def __getattr__(name: str) -> Any:
    if name in _PACKAGES:
        found: Any = importlib.import_module(f"noisycorr.{name}")
    elif name in _PLACES:
        module = importlib.import_module(_PLACES[name])
        found = getattr(module, name, module)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return list(__all__)


def open_run(folder: str | PathLike[str]) -> Any:
    """What a folder holds, as the object that its job gave: `CleanRun` of `clean`, a model of `train`, and so on.

    Args:
        folder: Made by any job.

    Raises:
        UsageError: If it holds nothing of ours.
    """
    from noisycorr.runtime.errors import UsageError

    stages = Path(folder) / "stages"
    for marker, (module, name) in reversed(_RESULTS.items()):
        if marker == "audit" and (stages / "decide.json").is_file():
            continue  # `clean` decided in this folder after the audit
        if (stages / f"{marker}.json").is_file():
            return getattr(importlib.import_module(module), name)(folder)
    if (Path(folder) / "config.yaml").is_file():
        return importlib.import_module("noisycorr.clean.result").CleanRun(folder)
    raise UsageError(f"{folder} is not a run folder: run `noisycorr clean SOURCE --output_folder {folder}` first.")


class _Scorers(types.ModuleType):
    """Scorers as functions on arrays, higher = better matched: `nc.score.lemon(image, text)`; `dir(nc.score)` has all.

    Row i of image (n, d) and of text (n, e) is one pair. `label_issues` and `label_quality` take class probabilities
    (n, c) and given labels (n,).
    """

    def __getattr__(self, name: str) -> Any:
        if name not in _SCORERS:
            raise AttributeError(f"noisycorr.score has no {name!r}: there are {', '.join(_SCORERS)}")
        found = getattr(importlib.import_module(_SCORERS[name]), name)
        setattr(self, name, found)
        return found

    def __dir__(self) -> list[str]:
        return list(_SCORERS)


score = _Scorers("noisycorr.score", _Scorers.__doc__)


@functools.cache
def _front(name: str) -> Any:
    """The function of a package that can be called."""
    function = getattr(importlib.import_module(_PACKAGES[name]), name)
    if name != "clean":
        return function
    from noisycorr.runtime.signature import flat

    return flat(function, repair=_NewTexts())  # captioning lends its new texts to cleaning here, where both are known


class _Called(types.ModuleType):
    """A package that is also the function of its name: `nc.clean(...)` and `noisycorr.clean.ledger`.

    The import system binds a package's name in its parent whenever one of its modules is imported, over a function of
    that name. So the package itself is what is called.
    """

    def __call__(self, *words: Any, **options: Any) -> Any:
        return self.__wrapped__(*words, **options)

    @property
    def __wrapped__(self) -> Any:
        return _front(self.__name__.rpartition(".")[2])

    @property
    def __signature__(self) -> Any:
        return self.__wrapped__.__signature__

    @property
    def __doc__(self) -> str:  # type: ignore[override]
        return str(self.__wrapped__.__doc__)


class _Package(types.ModuleType):
    """The front door itself: makes packages callable as they are bound."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _PACKAGES and isinstance(value, types.ModuleType):
            value.__class__ = _Called
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


class _NewTexts:
    """The recaption stage, imported when a plan asks for it."""

    def check(self, plan: Any) -> object:
        """Refuse what cannot be done."""
        from noisycorr.caption.recaption.stage import check_recaption

        return check_recaption(plan)

    def work(self, plan: Any, run: Any) -> None:
        """Lay new texts over the ledger."""
        from noisycorr.caption.recaption.stage import recaption_stage

        recaption_stage(plan, run)
