"""Slow loops that say what a noise-index file means."""

from __future__ import annotations


def texts_by_image(index: list[int], texts: list[str]) -> dict[int, list[str]]:
    """Texts that stand with each image, when text i is shown with image index[i] (or its block with image index[b])."""
    block = len(texts) // len(index)
    out: dict[int, list[str]] = {}
    for row, text in enumerate(texts):
        out.setdefault(index[row // block], []).append(text)
    return {image: sorted(group) for image, group in out.items()}
