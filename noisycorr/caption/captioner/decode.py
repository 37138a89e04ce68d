"""Write texts: greedy, beam or nucleus, with a cache, levels of each row, and guidance.

    guided log p = log p(w | picture, level) + g * (log p(w | picture, level) - log p(w | without))

Source: NoC for the level of the asked alignment; nucleus: Holtzman et al. (ICLR 2020); guidance: Kornblith et al. (ICCV
2023), there against no picture.
Differs from the code released for NoC: an empty text is cut at its end, too; the nucleus is that of each row, not of
the whole batch; keys and values are kept, so that a step costs one word, not the whole text again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from noisycorr.caption.captioner.choice import Decode
from noisycorr.caption.captioner.words import Words


@dataclass(frozen=True, slots=True)
class Written:
    """Texts as tokens.

    Attributes:
        tokens: Pieces of each text, without start and end.
        log_prob: Of each text with its end, in nats, of the (guided) distribution that it was searched by.
        ended: False where the text was cut because it became too long.
    """

    tokens: list[list[int]]
    log_prob: Float[Tensor, " b"]
    ended: Bool[Tensor, " b"]


class Next:
    """Log-probabilities of the next word behind each row, guided, with or without a cache.

    Args:
        decoder: Of the network.
        memories: What it reads, and, with guidance, what it reads without: (b, m, d) each.
        guidance: g.
        cached: Keep keys and values; without, each step computes all words again.
    """

    def __init__(self, decoder: Any, memories: list[Tensor], guidance: float, *, cached: bool = True) -> None:
        self.decoder, self.memories, self.guidance, self.cached = decoder, memories, guidance, cached
        self.caches = [decoder.new_cache() for _ in memories]

    def __call__(self, tokens: Int[Tensor, "r t"]) -> Float[Tensor, "r v"]:
        """For all words so far of each row."""
        found = []
        for memory, cache in zip(self.memories, self.caches):
            some = tokens[:, -1:] if self.cached and tokens.shape[1] > 1 else tokens
            logits = self.decoder(some, memory, cache if self.cached else None)[:, -1]
            found.append(torch.log_softmax(logits.double(), -1))
        if len(found) == 1:
            return found[0]
        return torch.log_softmax(found[0] + self.guidance * (found[0] - found[1]), -1)

    def fresh(self) -> Next:
        """The same before the first word."""
        return Next(self.decoder, self.memories, self.guidance, cached=self.cached)

    def take(self, rows: Int[Tensor, " r"]) -> None:
        """Go on with these rows."""
        self.memories = [memory[rows] for memory in self.memories]
        if self.cached:
            self.caches = [self.decoder.reorder(cache, rows) for cache in self.caches]


def write(following: Next, rows: int, words: Words, choice: Decode, *, most: int, device: torch.device,
          noise: Float[Tensor, "b t"] | None = None) -> Written:  # fmt: skip
    """Write one text for each row.

    Args:
        following: Of the b rows.
        rows: b.
        words: The vocabulary.
        choice: How.
        most: Most pieces of a text.
        device: Of the network.
        noise: Numbers in [0, 1) that the nucleus draws by, at least `most` + 1 for each row.
    """
    with torch.inference_mode():
        if choice.search == "beam" and choice.beams > 1:
            return _beam(following, rows, words, choice, most, device)
        pick = _likeliest if choice.search != "nucleus" else _draw(noise, choice)
        return _one_by_one(following, rows, words, choice, most, device, pick)


Pick = Callable[[Tensor, int], Tensor]


def _likeliest(log_prob: Tensor, step: int) -> Tensor:
    return log_prob.argmax(1)


def _draw(noise: Tensor | None, choice: Decode) -> Pick:
    if noise is None:
        raise ValueError("the nucleus needs numbers to draw by")

    def pick(log_prob: Tensor, step: int) -> Tensor:
        share, order = torch.softmax(log_prob / choice.heat, -1).sort(1, descending=True)
        before = share.cumsum(1) - share
        share = share * (before < choice.top_p)  # the likeliest word always stays
        total = share.cumsum(1)
        place = (total <= (noise[:, step] * total[:, -1])[:, None]).sum(1, keepdim=True)
        last = (share > 0).sum(1, keepdim=True) - 1
        return order.gather(1, torch.minimum(place, last))[:, 0]

    return pick


def forbid(log_prob: Float[Tensor, "r v"], tokens: Int[Tensor, "r t"], words: Words, choice: Decode) -> Tensor:
    """Minus infinity for what must not come next: padding, start, an early end, and a run of words that was there.

    Args:
        log_prob: Of the next word.
        tokens: All words so far, with the start.
        words: The vocabulary.
        choice: `least_tokens` and `no_repeat_ngram`.
    """
    log_prob = log_prob.clone()
    for number in {words.pad, words.start} - {words.end}:
        log_prob[:, number] = -torch.inf
    written, n = tokens[:, 1:], choice.no_repeat_ngram
    if n and written.shape[1] >= n:
        runs = written.unfold(1, n, 1)
        again = (runs[..., :-1] == written[:, written.shape[1] - n + 1 :][:, None]).all(-1)
        row, place = torch.nonzero(again, as_tuple=True)
        log_prob[row, runs[row, place, -1]] = -torch.inf
    if written.shape[1] < choice.least_tokens:
        ended = log_prob[:, words.end].clone()
        log_prob[:, words.end] = -torch.inf
        stuck = ~torch.isfinite(log_prob).any(1)  # then it ends early after all
        log_prob[stuck, words.end] = ended[stuck]
    return log_prob


def _one_by_one(following: Next, rows: int, words: Words, choice: Decode, most: int, device: torch.device,
                pick: Pick) -> Written:  # fmt: skip
    tokens = torch.full((rows, 1), words.start, device=device)
    total = torch.zeros(rows, dtype=torch.float64, device=device)
    ended = torch.zeros(rows, dtype=torch.bool, device=device)
    for step in range(most + 1):
        log_prob = forbid(following(tokens), tokens, words, choice)
        if step == most:  # no room but for the end
            ended_now = log_prob.argmax(1) == words.end
            total = total + torch.where(~ended & ended_now, log_prob[:, words.end], 0.0)
            ended = ended | ended_now
            break
        picked = torch.where(ended, words.end, pick(log_prob, step))
        gain = log_prob.gather(1, picked[:, None])[:, 0]
        total = total + torch.where(ended, 0.0, gain)
        tokens = torch.cat([tokens, picked[:, None]], 1)
        ended = ended | (picked == words.end)
        if bool(ended.all()):
            break
    return Written(_cut(tokens, words), total, ended)


def _beam(following: Next, rows: int, words: Words, choice: Decode, most: int, device: torch.device) -> Written:
    """The best of the beams and of the greedy text, so that more search never finds less."""
    greedy = _one_by_one(following.fresh(), rows, words, choice, most, device, _likeliest)
    k = choice.beams
    following.take(torch.arange(rows, device=device).repeat_interleave(k))
    tokens = torch.full((rows * k, 1), words.start, device=device)
    score = torch.full((rows, k), -torch.inf, dtype=torch.float64, device=device)
    score[:, 0] = 0
    ended = torch.zeros(rows * k, dtype=torch.bool, device=device)
    for _ in range(most + 1):
        log_prob = forbid(following(tokens), tokens, words, choice)
        size = log_prob.shape[1]
        log_prob[ended] = -torch.inf
        log_prob[ended, words.end] = 0.0
        score, best = (score[:, :, None] + log_prob.view(rows, k, size)).flatten(1).topk(k, 1)
        parent = (torch.arange(rows, device=device)[:, None] * k + best // size).flatten()
        tokens = torch.cat([tokens[parent], (best % size).view(-1, 1)], 1)
        ended = ended[parent] | (tokens[:, -1] == words.end)
        following.take(parent)
        if bool(ended.all()):
            break
    found = _cut(tokens, words)
    out = Written([], greedy.log_prob.clone(), greedy.ended.clone())
    for row in range(rows):
        options = [(float(score[row, b]), found[row * k + b][:most], bool(ended[row * k + b])) for b in range(k)]
        options = [(float(greedy.log_prob[row]), greedy.tokens[row], bool(greedy.ended[row])),
                   *(option for option in options if option[2])]  # fmt: skip
        value, text, end = max(options, key=lambda o: (o[2], o[0] / (len(o[1]) + 1) ** choice.length_penalty))
        out.tokens.append(text)
        out.log_prob[row], out.ended[row] = value, end
    return out


def _cut(tokens: Tensor, words: Words) -> list[list[int]]:
    """Pieces before the first end, also of an empty text."""
    lines = tokens[:, 1:].tolist()
    return [line[: line.index(words.end)] if words.end in line else line for line in lines]
