"""SGR, SAF and GPO one image and one text at a time, from their formulas."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from noisycorr.retrieval.settoset import OrderedPooling, SetSimilarity


def l2n(x: Tensor) -> Tensor:
    """x / (|x| + 1e-8) of one vector."""
    return x / (x.square().sum().sqrt() + 1e-8)


def nodes_of(module: SetSimilarity, image: Tensor, text: Tensor) -> list[Tensor]:
    """Node 0 and one for each word; `text` holds no padding."""
    regions, words = image[1:], text[1:]
    align = torch.stack([torch.stack([nn.functional.leaky_relu(v @ t, 0.1) for t in words]) for v in regions])
    align = torch.stack([l2n(row) for row in align])
    nodes = [l2n(module.whole((image[0] - text[0]) ** 2))]
    for k, word in enumerate(words):
        attention = (9.0 * align[:, k]).softmax(0)
        context = l2n(sum(a * v for a, v in zip(attention, regions)))  # type: ignore[arg-type]
        nodes.append(l2n(module.local((context - word) ** 2)))
    return nodes


def sgr(module: SetSimilarity, image: Tensor, text: Tensor) -> Tensor:
    """One similarity."""
    nodes = torch.stack(nodes_of(module, image, text))
    for step in module.steps:
        queries, keys = step["query"](nodes), step["key"](nodes)  # type: ignore[index,operator]
        rows = []
        for query in queries:
            edges = torch.stack([query @ key for key in keys]).softmax(0)
            rows.append(step["out"](sum(e * x for e, x in zip(edges, nodes))).relu())  # type: ignore[index,operator]
        nodes = torch.stack(rows)
    return module.score(nodes[0]).sigmoid().squeeze()


def saf_text(module: SetSimilarity, images: list[Tensor], text: Tensor, norm: nn.BatchNorm1d) -> list[Tensor]:
    """Similarities of one text with all images; `norm` sees the weights of all their nodes at once."""
    nodes = [torch.stack(nodes_of(module, image, text)) for image in images]
    raw = norm(torch.stack([module.weight(x).squeeze(-1) for x in nodes])[:, None])[:, 0]
    out = []
    for x, values in zip(nodes, raw):
        gate = values.sigmoid()
        gate = gate / (gate.sum() + 1e-8)
        out.append(module.score(l2n(sum(g * row for g, row in zip(gate, x)))).sigmoid().squeeze())  # type: ignore[arg-type]
    return out


def pool(module: OrderedPooling, x: Tensor) -> Tensor:
    """One set (t, d) to (d,)."""
    t, width = len(x), module.width
    codes = torch.zeros(t, width, dtype=x.dtype)
    for place in range(t):
        for half in range(width // 2):
            angle = torch.tensor(place * 10000.0 ** (-2 * half / width), dtype=x.dtype)
            codes[place, half], codes[place, width // 2 + half] = angle.sin(), angle.cos()
    both = module.walk(codes[None])[0][0]
    logits = module.score((both[:, :width] + both[:, width:]) / 2).squeeze(-1) / 0.1
    weights = logits.softmax(0)
    out = [sum(w * v for w, v in zip(weights, sorted(column, reverse=True))) for column in x.T]
    return torch.stack(out)  # type: ignore[arg-type]
