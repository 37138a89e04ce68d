"""Which pseudo-labels similar images bear out: votes of nearest neighbours by their labels, right or wrong."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Int


def neighbor_clean(label: Int[np.ndarray, " m"], near: Int[np.ndarray, "m k"]) -> Bool[np.ndarray, " m"]:
    """True where no class has more votes among the neighbours than the label that the image has.

        v_ic = #{j in N(i): y_j = c};     clean_i = (v_{i, y_i} = max_c v_ic  and  v_{i, y_i} > 0)

    Wrong labels that are spread over the classes rarely win a vote, even where most labels are wrong, as long as images
    of one class are each other's neighbours.

    Args:
        label: Class of each image, >= 0.
        near: Its most similar other images, as places in `label`; -1 stands for none.

    Source: Bahri, Jiang and Gupta, Deep k-NN for Noisy Labels, ICML 2020.
    Differs: neighbours come from the frozen image tower instead of a first model's logits; a tie is believed.
    """
    m, k = near.shape
    if not k:
        return np.ones(m, bool)
    votes = np.where(near >= 0, label[np.maximum(near, 0)], -1)
    own = (votes == label[:, None]).sum(1)
    most = np.zeros(m, np.int64)
    for place in range(k):
        here = votes[:, place, None]
        most = np.maximum(most, ((votes == here) & (here >= 0)).sum(1))
    return (own > 0) & (own == most)
