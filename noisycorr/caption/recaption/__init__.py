"""Texts for pairs whose own does not fit: proposed, judged by scorers that did not propose, guarded, and decided."""
