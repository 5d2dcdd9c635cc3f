"""Keys in very few bits, good enough to say which tokens matter, and the query in eight.

Keys are rotated by the Hadamard matrix, as the query is, so that no product changes: a channel of
the rotated keys is close to normal, whatever outliers the keys had, and then four evenly spaced
levels lose 12 % of its variance. (Rotation before rounding: QuaRot, Ashkboos et al. 2024, arXiv
2404.00456. Levels: Max 1960, "Quantizing for minimum distortion", table II.) Each channel has its
levels from the tokens that are there at prefill; tokens that come later are rounded to the same.

A code is a whole number and so is a digit of the query: their products are sums of whole numbers,
below 2^24, which every implementation and float32 itself finds exactly alike. Likewise the rotation
is sums and differences in one fixed order.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

# Distance of neighbouring levels, in standard deviations, that loses least of a normal variable.
LEVEL_STEP = {1: 1.596, 2: 0.9957, 4: 0.3352}
LARGEST_DIGIT = 127
# A product with this, not a quotient: torch on a GPU divides by a number in no other way.
INVERSE_DIGIT = 1 / LARGEST_DIGIT


def rotated(rows: Tensor) -> Tensor:
    """Rows times the Hadamard matrix of ±1: [..,D] -> float32 [..,D]; D is a power of two."""
    rows = rows.float()
    for _ in range(rows.shape[-1].bit_length() - 1):
        even, odd = rows[..., 0::2], rows[..., 1::2]
        rows = torch.cat((even + odd, even - odd), dim=-1)
    return rows


def levels(rows: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Where code 0 begins and how wide a code is, of rotated keys: [H,N,D] -> float32 [H,D] twice.

    The moments are float64, so that the order of summation decides nothing; the width is 1 where
    all tokens are equal.
    """
    spread, middle = torch.var_mean(rows.double(), dim=1, correction=0)
    step = (spread.sqrt() * LEVEL_STEP[bits]).float()
    step = torch.where(step > 0, step, 1.0)
    return middle.float() - step * 2 ** (bits - 1), step


def codes_of(rows: Tensor, base: Tensor, step: Tensor, bits: int) -> Tensor:
    """Codes of rotated keys [..,D] in float32, whole numbers from 0 to 2^bits - 1, saturating."""
    return ((rows - base) / step).floor_().clamp_(0, 2**bits - 1)


def packed(codes: Tensor, bits: int) -> Tensor:
    """Codes [..,D] -> uint8 [..,D·bits/8]: byte i holds channels i, i + D·bits/8, and so on, the
    first in the lowest bits."""
    planes = codes.to(torch.uint8).chunk(8 // bits, dim=-1)
    joined = planes[0].clone()
    for place, plane in enumerate(planes[1:], start=1):
        joined |= plane << place * bits
    return joined


def unpacked(joined: Tensor, bits: int) -> Tensor:
    """The codes again, in float32: uint8 [..,D·bits/8] -> [..,D]."""
    planes = [(joined >> place * bits) & (2**bits - 1) for place in range(8 // bits)]
    return torch.cat(planes, dim=-1).float()


def digits_of(q: Tensor, step: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """The query as it meets the codes: q [B,Hkv,G,D] and step [B,Hkv,D] -> digits in float32,
    whole numbers of at most 127, [B,Hkv,G,D], and float32 [B,Hkv,G]: what a product of a digit with
    a code is worth in logits to base 2."""
    worn = rotated(q) * step[:, :, None]
    largest = worn.abs().amax(dim=-1)
    unit = torch.where(largest > 0, largest * INVERSE_DIGIT, 1.0)
    digits = (worn / unit[..., None] + 0.5).floor_()
    return digits, unit * logit_unit(scale, q.shape[-1])


def logit_unit(scale: float, head_dim: int) -> float:
    """What a product of a rotated query with a rotated key is worth in logits to base 2; the
    rotation multiplied both by the root of `head_dim`."""
    return scale * math.log2(math.e) / head_dim
