"""Sums that tell whether the cache and the weights are what they were.

Modulo 2^64, on the device. They are cheap enough after every visit, where a cryptographic hash of
gigabytes is not. Every word of the cache is multiplied by an odd number of its column and by one of
its row, so that one changed bit shows, and so do rows that changed places. Weights are only added
up: a changed one shows, two that changed places do not.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from attnbench.kernels.fold import fold, takes
from attnbench.models.adapter import ExactCache, fold_multipliers, folded_rows, words_of

PLACE_MULTIPLIER = 0x9E3779B97F4A7C1  # odd: spreads a row's place over 64 bits
INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def cache_sums(cache: ExactCache, without: int | None = None) -> Tensor:
    """One number for each of the cache's tensors, int64 [2 * layers]; `without` one token's rows.

    Rows of zeros add nothing, so that an intact cache whose slot is clean has the same sums with
    and without the slot.
    """
    tensors = [rows for view in cache.views for rows in (view.k, view.v)]
    sums = torch.zeros(len(tensors), dtype=torch.int64, device=tensors[0].device)
    for number, rows in enumerate(tensors):
        words = words_of(rows)
        if takes(words):
            total = sums[number : number + 1]
            fold(words, fold_multipliers(words), total, PLACE_MULTIPLIER, without)
        else:
            by_row = _placed(folded_rows(rows))
            sums[number] = by_row.sum()
            if without is not None:
                sums[number] -= by_row[:, :, without].sum()
    return sums


def weight_sums(module: torch.nn.Module) -> Tensor:
    """The bits of every parameter and buffer added up, int64, on the device."""
    return torch.stack(
        [_flat_sum(each.detach()) for each in (*module.parameters(), *module.buffers())]
    )


def _placed(by_row: Tensor) -> Tensor:
    """Rows' numbers, times an odd number of each one's place in the whole tensor."""
    places = torch.arange(by_row.numel(), device=by_row.device).view(by_row.shape)
    return by_row * (2 * places + 1) * PLACE_MULTIPLIER


def _flat_sum(tensor: Tensor) -> Tensor:
    flat = tensor.reshape(-1)
    width = math.gcd(8, flat.numel() * flat.element_size())
    return flat.view(INTEGERS[width]).sum(dtype=torch.int64)
