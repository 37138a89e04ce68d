"""From texts to token numbers and back, with numbers for padding, start and end that no text can contain."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from jaxtyping import Int
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

PAD, START, END = 0, 1, 2
SPECIAL = 3  # numbers before those of word pieces


class Words(Protocol):
    """A vocabulary.

    Attributes:
        size: How many numbers there are.
        pad: Fills short texts; never counts.
        start: Stands before each text.
        end: Stands after each text that was not cut.
    """

    size: int
    pad: int
    start: int
    end: int

    def encode(self, text: str) -> list[int]:
        """Numbers of the pieces of a text, without start and end."""

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of pieces."""

    def save(self, folder: Path) -> None:
        """Write the vocabulary into a folder."""


class Pieces:
    """A byte-level byte-pair vocabulary of its own: any text of any script comes back as it was.

    Numbers 0 to 2 are kept for padding, start and end; a text that contains such words is text like any other.

    Differs: in the released code the padding is the word piece "!", which is therefore never learned.
    """

    pad, start, end = PAD, START, END

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.size = SPECIAL + tokenizer.get_vocab_size()

    @staticmethod
    def learn(texts: Sequence[str], size: int) -> Pieces:
        """Merge the commonest pairs of pieces until there are `size` of them, or none comes twice."""
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(vocab_size=size - SPECIAL, min_frequency=2, show_progress=False,
                                      initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()))  # fmt: skip
        tokenizer.train_from_iterator(texts, trainer)
        return Pieces(tokenizer)

    def encode(self, text: str) -> list[int]:
        """Numbers of the pieces."""
        return [SPECIAL + number for number in self.tokenizer.encode(text, add_special_tokens=False).ids]

    def decode(self, tokens: Sequence[int]) -> str:
        """The text; bytes that are no whole letter are left out."""
        text = self.tokenizer.decode([number - SPECIAL for number in tokens if number >= SPECIAL])
        return str(text).replace("\ufffd", "").strip()

    def save(self, folder: Path) -> None:
        """As `pieces.json`."""
        self.tokenizer.save(str(folder / "pieces.json"))

    @staticmethod
    def load(folder: Path) -> Pieces:
        """What `save` wrote."""
        return Pieces(Tokenizer.from_file(str(folder / "pieces.json")))


class LanguageWords:
    """The vocabulary of a language model, with one number more for padding, which the model never sees.

    Args:
        tokenizer: Of transformers.
        size: Rows of the embedding of the model.
    """

    def __init__(self, tokenizer: Any, size: int) -> None:
        self.tokenizer, self.size = tokenizer, size
        end = tokenizer.eos_token_id
        self.end = int(end if end is not None else tokenizer.sep_token_id)
        self.start = int(tokenizer.bos_token_id if tokenizer.bos_token_id is not None else self.end)
        self.pad = self.end  # masked by length, so that its number does not matter

    def encode(self, text: str) -> list[int]:
        """Numbers of the pieces; names of special tokens in a text are text."""
        found = self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        return [number for number in found if number not in (self.start, self.end)]

    def decode(self, tokens: Sequence[int]) -> str:
        """The text."""
        return str(self.tokenizer.decode(list(tokens), skip_special_tokens=True)).replace("\ufffd", "").strip()

    def save(self, folder: Path) -> None:
        """As transformers does."""
        self.tokenizer.save_pretrained(folder / "language")


def token_table(texts: Sequence[str | None], words: Words, longest: int) -> tuple[Int[np.ndarray, "n t"], np.ndarray]:
    """Start, pieces and end of each text in one table.

    Args:
        texts: n texts.
        words: The vocabulary.
        longest: Most pieces of a text; a longer one is cut and has no end, because it does not end there.

    Returns:
        int64 (n, longest + 2), padded; and int64 (n,): numbers of a row that count. A text without a piece, such as an
        empty one, has length 0 and never counts.
    """
    table = np.full((len(texts), longest + 2), words.pad, np.int64)
    length = np.zeros(len(texts), np.int64)
    for row, text in enumerate(texts):
        pieces = words.encode(text) if text and text.strip() else []
        if not pieces:
            continue
        line = [words.start, *pieces[:longest], *([words.end] if len(pieces) <= longest else [])]
        table[row, : len(line)], length[row] = line, len(line)
    return table, length
