"""How prompts are tuned: the choices behind the flags of `noisycorr prompt`. Light, so that the help comes at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from noisycorr.runtime.errors import UsageError, check_least, check_words

WORDS_RANDOM = "random"
LONGEST = 64


@dataclass(frozen=True, kw_only=True)
class Context:
    """What is learned, and where it goes.

    Attributes:
        prompt: text puts learned vectors before the class names; residual adds one to each class vector, behind the
            text tower, in a thousandth of the time; visual puts them among the patches of the picture, multimodal does
            both, by one small network; the last two do not work with the embedded encoder.
        context: shared has one prompt for all classes, class one for each.
        prompt_init: Words whose vectors the prompt starts from; random draws them from N(0, 0.02^2).
        prompt_tokens: Vectors of a random or visual prompt, 1 to 64; multimodal takes this many for each side.
        depth: shallow puts a visual prompt before the first layer, deep another one before every layer.
        upt_attention: full lets all vectors of a multimodal prompt see each other; pair only the two of the same place,
            as the released code does.
        template: Text of a class without a prompt, {} stands for its name; several, joined by |, are averaged.
        scale: Logits are cosines times this; 0 = the model's own temperature, and 10 for the embedded encoder.

    Raises:
        UsageError: If a value is out of its range.
    """

    prompt: Literal["text", "residual", "visual", "multimodal"] = "text"
    context: Literal["shared", "class"] = "class"
    prompt_init: str = "a photo of a"
    prompt_tokens: int = 8
    depth: Literal["shallow", "deep"] = "shallow"
    upt_attention: Literal["full", "pair"] = "full"
    template: str = "a photo of a {}"
    scale: float = 0.0

    def __post_init__(self) -> None:
        check_words(self)
        if not 1 <= self.prompt_tokens <= LONGEST:
            raise UsageError(f"`prompt_tokens` is {self.prompt_tokens}, expected 1 to {LONGEST}.")
        if not self.prompt_init.strip():
            raise UsageError("`prompt_init` is empty, expected words, or random.")
        if self.scale < 0:
            raise UsageError(f"`scale` is {self.scale}, expected 0 (the model's own) or more.")
        for part in self.template.split("|"):
            if part.count("{}") != 1:
                raise UsageError(f"`template` has {part!r}, expected {{}} once where the class name goes.")

    @property
    def in_image_tower(self) -> bool:
        """True if image vectors depend on the prompt, so that pictures are encoded anew."""
        return self.prompt in ("visual", "multimodal")

    def texts(self, name: str) -> list[str]:
        """A class in the words of all templates."""
        return [part.strip().replace("{}", name) for part in self.template.split("|")]


@dataclass(frozen=True, kw_only=True)
class Rounds:
    """Which pseudo-labels are learned from, round by round.

    Attributes:
        strategy: grip gives every class more labels in each round, ifpl the same number, fpl has one round.
        rounds: Of grip and ifpl, 1 to 100.
        per_class: Labels of each class in fpl and ifpl, >= 1.
        selector: balanced labels by a transport to the sizes of the classes; exclusive gives an image one label, the
            surest pair first; leaderboard is the released code's; argmax takes the surest of each predicted class,
            column the surest for each class; threshold all above a probability; candidates soft labels of a few.
        balance: Sizes of the classes. estimated lies half-way between even sizes and those that the posterior sees,
            and grip grows until all images are labelled; uniform is even and reaches all; unknown stops at half.
        posterior: What labels are chosen from. mixture sees classes as clouds of similar images, in the features of
            the image tower; neighbors averages probabilities with those of similar images; prompt leaves them alone.
        neighbors: How many similar images, of posterior neighbors; 0 = none.
        threshold: Least probability of the selector threshold, in [0, 1].
        alpha: Quantile within an image of the selector candidates, in [0, 1].
        beta: Quantile within a class of the selector candidates, in [0, 1].
        confidence: Pseudo-labels count for their probability to this power, >= 0; 0 = all alike.
        decay: And for this to the power of the rounds since the image first got the label, in (0, 1].
        floor: But for this at least, in [0, 1].
        guard: Undo a round after which the model contradicts itself, or similar images; it is tried once more, slower.
            Without given labels, do not begin where zero-shot is hardly sure of anything.
        guard_fit: How far the share of images that get their own pseudo-label may fall in a round, in [0, 1].
        guard_agree: Least share of images that are predicted as in the round before, in [0, 1].

    Raises:
        UsageError: If a value is out of its range.
    """

    strategy: Literal["grip", "ifpl", "fpl"] = "grip"
    rounds: int = 4
    per_class: int = 16
    selector: Literal["balanced", "exclusive", "leaderboard", "argmax", "column", "threshold", "candidates"] = (
        "balanced"
    )
    balance: Literal["estimated", "unknown", "uniform"] = "estimated"
    posterior: Literal["mixture", "neighbors", "prompt"] = "mixture"
    neighbors: int = 5
    threshold: float = 0.9
    alpha: float = 0.6
    beta: float = 0.9
    confidence: float = 0.0
    decay: float = 1.0
    floor: float = 0.0
    guard: bool = True
    guard_fit: float = 0.15
    guard_agree: float = 0.65

    def __post_init__(self) -> None:
        check_words(self)
        if not 1 <= self.rounds <= 100:
            raise UsageError(f"`rounds` is {self.rounds}, expected 1 to 100.")
        check_least(self, {"per_class": 1, "neighbors": 0, "confidence": 0})
        for name in ("threshold", "alpha", "beta", "floor", "guard_fit", "guard_agree"):
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError(f"`{name}` is {getattr(self, name)}, expected 0 to 1.")
        if not 0 < self.decay <= 1:
            raise UsageError(f"`decay` is {self.decay}, expected above 0, at most 1.")


@dataclass(frozen=True, kw_only=True)
class Steps:
    """How a prompt is learned in each round.

    Attributes:
        epochs: Passes over the images of a round, >= 1.
        batch_size: Images of one step over all processes; 0 = all of the round, or 64 where pictures are encoded anew.
        optimizer: adam, or sgd with momentum 0.9.
        lr: Highest learning rate; it falls along a cosine to a tenth.
        wd: Weight decay.
        grad_clip_norm: Longest gradient; 0 = any.
        loss: ce, gce and mae, which forgive wrong labels, or elr, which doubts labels that the model did not learn
            early.
        gce_q: Of gce, in (0, 1].
        clean: neighbors learns only from pseudo-labels that the most similar images bear out; ot from those that
            balanced transport of the last prompt's answers agrees with; none from all.
        clean_neighbors: How many similar images, of clean neighbors, >= 1.
        loss_weights: pooled takes one mean over all images of a batch; shipped and ratio weigh labelled and
            pseudo-labelled ones as the released code does.
        reinit: Start every round from the first prompt instead of the last one.
        seed: Of prompt and order.

    Raises:
        UsageError: If a value is out of its range.
    """

    epochs: int = 6
    batch_size: int = 0
    optimizer: Literal["adam", "sgd"] = "adam"
    lr: float = 0.02
    wd: float = 0.0
    grad_clip_norm: float = 1.0
    loss: Literal["ce", "gce", "mae", "elr"] = "ce"
    gce_q: float = 0.7
    clean: Literal["none", "ot", "neighbors"] = "none"
    clean_neighbors: int = 20
    loss_weights: Literal["pooled", "shipped", "ratio"] = "pooled"
    reinit: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        check_words(self)
        check_least(self, {"epochs": 1, "batch_size": 0, "lr": 0, "wd": 0, "grad_clip_norm": 0,
                           "clean_neighbors": 1})  # fmt: skip
        if not 0 < self.gce_q <= 1:
            raise UsageError(f"`gce_q` is {self.gce_q}, expected above 0, at most 1.")
