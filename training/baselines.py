"""What a model must beat: a unigram, and a bigram with interpolated Kneser-Ney smoothing.

Kneser and Ney 1995, interpolated as in Chen and Goodman 1999, with the discount
n1 / (n1 + 2 n2), one added to both. Both baselines are fitted on the training tokens and scored on
the tokens that the model is scored on.
"""

from __future__ import annotations

import numpy as np


class Bigram:
    """Log probabilities in nats, [V, V] float64, row: the token before."""

    def __init__(self, ids: np.ndarray, vocabulary: int) -> None:
        pairs = np.bincount(ids[:-1] * vocabulary + ids[1:], minlength=vocabulary**2)
        counts = pairs.reshape(vocabulary, vocabulary).astype(np.float64)
        once, twice = (counts == 1).sum(), (counts == 2).sum()
        discount = (once + 1) / (once + 1 + 2 * (twice + 1))
        row_total = counts.sum(1, keepdims=True)
        spared = discount * (counts > 0).sum(1, keepdims=True)
        lower = _add_one((counts > 0).sum(0))
        seen = np.maximum(row_total, 1)
        smoothed = np.maximum(counts - discount, 0) / seen + spared / seen * lower
        self.log_p = np.log(np.where(row_total > 0, smoothed, lower))

    def nll(self, before: np.ndarray, targets: np.ndarray) -> float:
        """Mean negative log likelihood in nats a token."""
        return float(-self.log_p[before, targets].mean())


class Unigram:
    """Log probabilities in nats, [V] float64, one added to every count."""

    def __init__(self, ids: np.ndarray, vocabulary: int) -> None:
        self.log_p = np.log(_add_one(np.bincount(ids, minlength=vocabulary)))

    def nll(self, targets: np.ndarray) -> float:
        """Mean negative log likelihood in nats a token."""
        return float(-self.log_p[targets].mean())


def _add_one(counts: np.ndarray) -> np.ndarray:
    return (counts + 1) / (counts + 1).sum()
