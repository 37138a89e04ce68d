"""Class names through a frozen text tower, with learned vectors where placeholder words stood.

A hook on the tower's word embedding overwrites the placeholders, so that no code of open_clip or transformers is
touched and each backbone pools as it always does. Source: context vectors, CoOp (Zhou et al., IJCV 2022).
Differs: no full stop behind the name, as in GRIP's released code; the first vectors are those of words, if wanted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from noisycorr.models.encoders.trainable import OpenClipTrainable, TransformersTrainable
from noisycorr.runtime.errors import UsageError

PLACEHOLDERS = ("x", "a", "the", "photo")  # words that are one token in every vocabulary that was met
CHUNK = 32  # class names of one forward pass


class TextSide(Protocol):
    """The text tower of an encoder, with gradient.

    Attributes:
        name: Of the encoder.
        embedding: The module that turns token ids into vectors (b, t, width).
        width: Of a token vector.
        dim: Of the joint space.
        scale: Logits are cosines times this.
    """

    name: str
    embedding: nn.Module
    width: int
    dim: int
    scale: float

    def tokens(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Token ids (n, t), and how many of each row matter."""

    def encode(self, ids: Int[Tensor, "b t"], lengths: Int[Tensor, " b"]) -> Float[Tensor, "b d"]:
        """Rows of unit length in the joint space."""


class EmbeddedText:
    """all-MiniLM-L6-v2 with the mean over classes taken off, as `EmbeddedEncoder.joint_space` does.

    Args:
        encoder: An `EmbeddedEncoder`.
        scale: The two towers were never trained together, so there is no temperature of theirs.
    """

    def __init__(self, encoder: Any, scale: float = 20.0) -> None:
        self.name, self._encoder, self.scale = encoder.name, encoder, scale
        self.embedding = encoder.tower.get_input_embeddings()
        self.width, self.dim = self.embedding.embedding_dim, encoder.text_dim
        self._mean = torch.from_numpy(encoder.sentences.mean(axis=0))

    def tokens(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Word pieces."""
        batch = self._encoder.tokenize(texts)
        return batch["input_ids"].numpy(), batch["attention_mask"].sum(1).numpy()

    def encode(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """Mean of the token vectors, at length 1, less the mean, at length 1."""
        mask = (torch.arange(ids.shape[1], device=ids.device) < lengths[:, None]).long()
        states = self._encoder.tower(input_ids=ids, attention_mask=mask).last_hidden_state
        weight = mask.unsqueeze(-1).to(states.dtype)
        sentences = functional.normalize((states * weight).sum(1) / weight.sum(1), dim=-1)
        return functional.normalize(sentences - self._mean.to(sentences), dim=-1)


class ClipText:
    """The text tower of a CLIP or SigLIP.

    Args:
        trainable: `OpenClipTrainable` or `TransformersTrainable` around the encoder.
    """

    def __init__(self, trainable: OpenClipTrainable | TransformersTrainable) -> None:
        self.trainable, self.model = trainable, trainable.encoder.model
        self.name, self.dim = trainable.encoder.name, trainable.encoder.text_dim
        self.scale = 1 / trainable.temperature
        self.embedding = _word_embedding(self.model, self.name)
        self.width = int(self.embedding.embedding_dim)  # type: ignore[arg-type]

    def tokens(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Ids of the model's own tokenizer."""
        return self.trainable.tokens(texts)

    def encode(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """Text features at length 1."""
        return functional.normalize(self.trainable.text(self.model, ids, lengths), dim=-1)


def text_side(encoder: Any) -> TextSide:
    """The text tower of an encoder.

    Raises:
        UsageError: If it has none that prompts can be put into.
    """
    kind = type(encoder).__name__
    if kind == "EmbeddedEncoder":
        return EmbeddedText(encoder)
    if kind == "OpenClipEncoder":
        return ClipText(OpenClipTrainable(encoder))
    if kind == "TransformersEncoder":
        return ClipText(TransformersTrainable(encoder))
    raise UsageError(
        f"the encoder {encoder.name} has no text tower for prompts: use `clip_model` embedded, open_clip:... or "
        "hf_clip:..."
    )


class ClassTexts:
    """The texts of all classes with room for a prompt of `count` vectors.

    Args:
        side: The tower.
        names: Class names.
        count: Vectors of the prompt, >= 1.
        device: Where the tower is.

    Raises:
        UsageError: If a name does not fit behind the prompt.
    """

    def __init__(self, side: TextSide, names: Sequence[str], count: int, *, device: torch.device) -> None:
        self.side, self.count = side, count
        filler, self.start = _placeholder(side, count)
        texts = [f"{filler} {name}" for name in names]
        ids, lengths = side.tokens(texts)
        longer = _padded(side.tokens([f"{text} {filler}" for text in texts])[0], ids.shape[1])
        for name, row, other in zip(names, ids, longer):
            if len(set(row[self.start : self.start + count].tolist())) != 1 or (row == other).all():
                raise UsageError(
                    f"the class name {_short(name)!r} does not fit into the context of {side.name} behind "
                    f"{count} prompt vectors: shorten it, or take fewer `prompt_tokens`."
                )
        self._ids, self._lengths = torch.from_numpy(ids).long(), torch.from_numpy(np.asarray(lengths)).long()
        self.device = device

    def __len__(self) -> int:
        return len(self._ids)

    def __call__(self, prompt: Float[Tensor, "k m d"], rows: Sequence[int] | None = None) -> Float[Tensor, "c d"]:
        """Class vectors of unit length.

        Args:
            prompt: One for all classes (k = 1), or one for each class.
            rows: Only these classes; None = all.
        """
        chosen = torch.arange(len(self)) if rows is None else torch.as_tensor(list(rows), dtype=torch.long)
        order = chosen[torch.argsort(self._lengths[chosen], stable=True)]
        parts = [self._encode(part, prompt) for part in order.split(CHUNK)]
        if not parts:
            return prompt.new_zeros((0, self.side.dim))
        back = torch.argsort(torch.argsort(self._lengths[chosen], stable=True))
        return torch.cat(parts)[back.to(self.device)]

    def _encode(self, rows: Tensor, prompt: Tensor) -> Tensor:
        longest = int(self._lengths[rows].max())
        ids, lengths = self._ids[rows, :longest].to(self.device), self._lengths[rows].to(self.device)
        mine = prompt.expand(len(rows), -1, -1) if len(prompt) == 1 else prompt[rows.to(self.device)]

        def overwrite(module: nn.Module, given: Any, output: Tensor) -> Tensor:
            before, after = output[:, : self.start], output[:, self.start + self.count :]
            return torch.cat([before, mine.to(output.dtype), after], dim=1)

        handle = self.side.embedding.register_forward_hook(overwrite)
        try:
            return self.side.encode(ids, lengths)
        finally:
            handle.remove()


def plain_texts(side: TextSide, texts: Sequence[str], device: torch.device) -> Float[Tensor, "n d"]:
    """Texts without a prompt, in the joint space, without gradient."""
    ids, lengths = side.tokens(texts)
    whole, many = torch.from_numpy(ids).long(), torch.from_numpy(np.asarray(lengths)).long()
    order = torch.argsort(many, stable=True)
    with torch.no_grad():
        parts = [side.encode(whole[rows, : int(many[rows].max())].to(device), many[rows].to(device))
                 for rows in order.split(CHUNK)]  # fmt: skip
    return torch.cat(parts)[torch.argsort(order).to(device)]


def word_vectors(side: TextSide, words: str, device: torch.device) -> Float[Tensor, "1 m d"]:
    """Token vectors of words that a prompt may start from; as many as the words have tokens.

    Raises:
        UsageError: If there is no word.
    """
    filler, start = _placeholder(side, 1)
    row = side.tokens([f"{words} {filler}"])[0][0]
    marks = np.flatnonzero(row == side.tokens([filler])[0][0, start])
    if not len(marks) or marks[-1] <= start:
        raise UsageError(f"`prompt_init` is {words!r}, expected words, or random.")
    ids = torch.from_numpy(row[start : marks[-1]].astype(np.int64))[None].to(device)
    return side.embedding(ids).detach()


def _placeholder(side: TextSide, count: int) -> tuple[str, int]:
    """`count` times a word that is one token, and the position of the first."""
    for word, other in zip(PLACEHOLDERS, PLACEHOLDERS[1:] + PLACEHOLDERS[:1]):
        one, two = (side.tokens([text])[0][0] for text in (word, other))
        short = min(len(one), len(two))
        differing = np.flatnonzero(one[:short] != two[:short])
        if not len(differing):
            continue
        filler, start = " ".join([word] * count), int(differing[0])
        row = side.tokens([f"{filler} {other}"])[0][0]
        run = row[start : start + count + 1]
        if len(run) == count + 1 and (run[:count] == one[start]).all() and run[count] == two[start]:
            return filler, start
    raise UsageError(f"{count} prompt vectors do not fit into the context of {side.name}: take fewer `prompt_tokens`.")


def _padded(ids: np.ndarray, length: int) -> np.ndarray:
    """The first `length` positions."""
    return ids[:, :length]


def _word_embedding(model: Any, name: str) -> nn.Module:
    """Where token ids become vectors."""
    if hasattr(model, "token_embedding"):
        embedding = model.token_embedding
    elif hasattr(model, "text") and hasattr(model.text, "token_embedding"):
        embedding = model.text.token_embedding
    elif hasattr(model, "text_model"):
        embedding = model.text_model.get_input_embeddings()
    else:
        raise UsageError(f"prompts cannot be put into the text tower of {name}: its word embedding was not found.")
    assert isinstance(embedding, nn.Module)
    return embedding


def _short(name: str) -> str:
    return name if len(name) <= 60 else f"{name[:57]}..."
