"""How good captions are, without Java: BLEU, ROUGE-L and CIDEr-D against references, and measures that need none.

Candidates are n strings, references n lists of strings. Tokens come from `tokenize`, which follows the Penn Treebank
closely enough for captions; the formulas are those of coco-caption and give its values on equal tokens.

All are higher = better but the pairwise likeness of `distinctiveness`.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from noisycorr.clean.scorers import clip_score as clip_score
from noisycorr.runtime.errors import UsageError
from noisycorr.stats.recall import KS, feature_blocks, recall_at, retrieval_ranks

ORDERS = 4
ROUGE_BETA = 1.2
CIDER_SIGMA = 6.0
TINY, SMALL = 1e-15, 1e-9  # of coco-caption: no match is a score near 0, not an error
_CONTRACTION = re.compile(r"(?<=\w)(n't|'s|'m|'d|'ll|'re|'ve)\b")
_TOKEN = re.compile(r"n't\b|'(?:s|m|d|ll|re|ve)\b|\w+(?:[-.,:/'&]\w+)*|[^\w\s]", re.UNICODE)
_DROPPED = frozenset({*"'`\"“”‘’()[]{}.?!,:-…;", "''", "``", "--", "..."})
_JAVA = {"meteor": ("meteor.meteor", "Meteor"), "spice": ("spice.spice", "Spice")}

Captions = Sequence[str]
References = Sequence[Sequence[str]]


def tokenize(text: str) -> list[str]:
    """Tokens in lower case, contractions split, punctuation dropped.

    "A dog's ball isn't red, it's blue." gives a dog 's ball is n't red it 's blue. Hyphens and points inside a word
    stay ("t-shirt", "3.5").

    Source: PTBTokenizer of coco-caption, its list of dropped punctuation.
    Differs: one expression instead of Stanford's rules, so abbreviations that end in a point lose it, "cannot" stays
    one word, and curly quotes are dropped like straight ones.
    """
    flat = text.lower().replace("’", "'").replace("‘", "'")
    return [token for token in _TOKEN.findall(_CONTRACTION.sub(r" \1", flat)) if token not in _DROPPED]


def bleu(candidates: Captions, references: References) -> list[float]:
    """Corpus BLEU-1 to BLEU-4, each in [0, 1].

        p_n    = sum of clipped n-gram matches / sum of n-grams,   BLEU-N = min(1, e^(1 - r / c)) (p_1 ... p_N)^(1 / N)

    with c the tokens of all candidates and r those of the references that are closest in length.

    Raises:
        UsageError: If the lists do not fit, or there are no captions.

    Source: BLEU (Papineni et al., ACL 2002) as in coco-caption: ties in length go to the shorter reference.
    """
    hits, total, length, closest = np.zeros(ORDERS), np.zeros(ORDERS), 0, 0
    for tokens, refs in _tokens(candidates, references):
        length += len(tokens)
        closest += min((abs(len(ref) - len(tokens)), len(ref)) for ref in refs)[1]
        for order in range(ORDERS):
            found, most = _grams(tokens, order + 1), Counter[tuple[str, ...]]()
            for ref in refs:
                most |= _grams(ref, order + 1)
            hits[order] += (found & most).total()
            total[order] += max(0, len(tokens) - order)
    product, out = 1.0, []
    ratio = (length + TINY) / (closest + SMALL)
    for order in range(ORDERS):
        product *= (hits[order] + TINY) / (total[order] + SMALL)
        out.append(float(product ** (1 / (order + 1)) * (math.exp(1 - 1 / ratio) if ratio < 1 else 1.0)))
    return out


def rouge_l(candidates: Captions, references: References) -> float:
    """Mean over captions of an F-measure of the longest common subsequence, in [0, 1].

        p = max_ref LCS / |candidate|,   r = max_ref LCS / |ref|,   F = (1 + b^2) p r / (r + b^2 p),   b = 1.2

    Raises:
        UsageError: If the lists do not fit, or there are no captions.

    Source: ROUGE-L (Lin, 2004) as in coco-caption, which takes the best p and the best r apart.
    """
    scores = []
    for tokens, refs in _tokens(candidates, references):
        common = [_common(tokens, ref) for ref in refs]
        p = max(c / max(len(tokens), 1) for c in common)
        r = max(c / max(len(ref), 1) for c, ref in zip(common, refs))
        scores.append((1 + ROUGE_BETA**2) * p * r / (r + ROUGE_BETA**2 * p) if p and r else 0.0)
    return float(np.mean(scores))


def cider_d(candidates: Captions, references: References) -> Float[np.ndarray, " n"]:
    """CIDEr-D of each caption, in [0, 10]; papers print the mean times 100, so a mean of 1.1 as 110.

        g_n(s)  = counts of n-grams times log(captions / captions whose references hold the n-gram)
        score   = 10 / 4 sum_n mean_ref e^(-(l_c - l_r)^2 / 72) min(g_n(c), g_n(r)) . g_n(r) / (|g_n(c)| |g_n(r)|)

    Args:
        candidates: n captions.
        references: n lists; the set they form weighs the words, so values of different sets cannot be compared, and
            one caption alone scores 0.

    Raises:
        UsageError: If the lists do not fit, or there are no captions.

    Source: CIDEr-D (Vedantam et al., CVPR 2015) as in coco-caption: lengths l are numbers of bigrams, there is no
    stemming, and the value is the mean over n, times 10.
    """
    rows = _tokens(candidates, references)
    seen: Counter[tuple[str, ...]] = Counter()
    cooked = [(_all_grams(tokens), [_all_grams(ref) for ref in refs]) for tokens, refs in rows]
    for _, refs in cooked:
        seen.update(set().union(*refs))
    weight = {gram: math.log(len(rows)) - math.log(count) for gram, count in seen.items()}
    unseen = math.log(len(rows))
    scores = np.zeros(len(rows))
    for row, (tokens, refs) in enumerate(cooked):
        own, own_norm = _weighed(tokens, weight, unseen)
        for ref in refs:
            other, other_norm = _weighed(ref, weight, unseen)
            match = np.zeros(ORDERS)
            for gram, value in own.items():
                match[len(gram) - 1] += min(value, other.get(gram, 0.0)) * other.get(gram, 0.0)
            norm = own_norm * other_norm
            gap = _bigrams(tokens) - _bigrams(ref)
            scores[row] += (np.divide(match, norm, out=np.zeros(ORDERS), where=norm > 0)
                            * math.exp(-(gap**2) / (2 * CIDER_SIGMA**2))).mean() / len(refs)  # fmt: skip
    return 10 * scores


def self_retrieval(image: Float[np.ndarray, "n d"], text: Float[np.ndarray, "n d"]) -> dict[str, float]:
    """Does a caption find its own image among all n? Recall at 1, 5 and 10 in percent, ties against the caption.

    Equal captions share one feature and hurt each other: that is what this measures.

    Source: NoC (Kang et al., ICCV 2023). Differs: ties count against the caption.
    """
    n = len(text)
    ranks = retrieval_ranks(feature_blocks(image, text), np.arange(n), n)[1]
    return {f"self_retrieval_recall@{k}": recall_at(ranks, k) for k in KS}


def distinctiveness(candidates: Captions) -> dict[str, float]:
    """How different the captions are from each other, and how long.

    Returns:
        ``unique``: different captions (by tokens) over n, in (0, 1]; ``words``: mean number of tokens; ``vocabulary``:
        different tokens; ``pairwise``: mean over pairs of the share of words in common (Jaccard), in [0, 1], lower =
        more different, over at most 2,000 captions spread evenly; 0 for a single one.

    Raises:
        UsageError: If there are none.
    """
    if not len(candidates):
        raise UsageError("There are no captions to score.")
    rows = [tokenize(text) for text in candidates]
    some = [set(rows[i]) for i in np.unique(np.linspace(0, len(rows) - 1, min(len(rows), 2000)).astype(int))]
    names = {word: place for place, word in enumerate(sorted(set().union(*some)))}
    held = np.zeros((len(some), max(len(names), 1)), np.float32)
    for row, words in enumerate(some):
        held[row, [names[word] for word in words]] = 1
    common, size = held @ held.T, held.sum(1)
    union = size[:, None] + size[None] - common
    alike = np.where(union > 0, common / np.maximum(union, 1), 1.0)
    pairs = len(some) * (len(some) - 1)
    return {
        "unique": len({tuple(row) for row in rows}) / len(rows),
        "pairwise": float((alike.sum() - np.trace(alike)) / pairs) if pairs else 0.0,
        "words": float(np.mean([len(row) for row in rows])),
        "vocabulary": float(len({word for row in rows for word in row})),
    }


def java_metric(name: str, candidates: Captions, references: References) -> float:
    """METEOR or SPICE of the package pycocoevalcap, in [0, 1], on our tokens.

    Args:
        name: meteor or spice.
        candidates: n captions.
        references: n lists.

    Raises:
        UsageError: If the package or Java is missing, or the lists do not fit.
    """
    import importlib
    import shutil

    rows = _tokens(candidates, references)
    module, kind = _JAVA[name]
    try:
        scorer = getattr(importlib.import_module(f"pycocoevalcap.{module}"), kind)
    except ImportError:
        raise UsageError(f"{name} needs a package: `pip install pycocoevalcap`, and Java; all other metrics need "
                         "neither.") from None  # fmt: skip
    if shutil.which("java") is None:
        raise UsageError(f"{name} runs in Java, but there is no `java`: install a Java runtime, or leave {name} out.")
    gts = {row: [" ".join(ref) for ref in refs] for row, (_, refs) in enumerate(rows)}
    res = {row: [" ".join(tokens)] for row, (tokens, _) in enumerate(rows)}
    return float(scorer().compute_score(gts, res)[0])


def _tokens(candidates: Captions, references: References) -> list[tuple[list[str], list[list[str]]]]:
    """Tokens of every caption and of its references that are not empty."""
    if len(candidates) != len(references) or not len(candidates):
        raise UsageError(f"There are {len(candidates)} captions and {len(references)} lists of references; expected "
                         "the same number, at least one.")  # fmt: skip
    out = []
    for row, (text, refs) in enumerate(zip(candidates, references)):
        if isinstance(refs, str):
            raise UsageError(f"The references of caption {row} are one string; expected a list of strings.")
        some = [tokens for ref in refs if (tokens := tokenize(ref))]
        if not some:
            raise UsageError(f"Caption {row} has no reference with a word in it: leave it out.")
        out.append((tokenize(text), some))
    return out


def _grams(tokens: Sequence[str], order: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(tokens[i : i + order]) for i in range(len(tokens) - order + 1))


def _all_grams(tokens: Sequence[str]) -> Counter[tuple[str, ...]]:
    out: Counter[tuple[str, ...]] = Counter()
    for order in range(1, ORDERS + 1):
        out.update(_grams(tokens, order))
    return out


def _bigrams(grams: Counter[tuple[str, ...]]) -> int:
    return sum(count for gram, count in grams.items() if len(gram) == 2)


def _weighed(grams: Counter[tuple[str, ...]], weight: dict[tuple[str, ...], float],
             unseen: float) -> tuple[dict[tuple[str, ...], float], np.ndarray]:  # fmt: skip
    """Weighed counts and their norm by order."""
    values = {gram: count * weight.get(gram, unseen) for gram, count in grams.items()}
    square = np.zeros(ORDERS)
    for gram, value in values.items():
        square[len(gram) - 1] += value**2
    return values, np.sqrt(square)


def _common(one: Sequence[str], two: Sequence[str]) -> int:
    """Length of the longest common subsequence."""
    last = [0] * (len(two) + 1)
    for word in one:
        now = [0]
        for place, other in enumerate(two):
            now.append(last[place] + 1 if word == other else max(last[place + 1], now[-1]))
        last = now
    return last[-1]
