"""The kernel that appends a token writes its own row and no other."""

from __future__ import annotations

import pytest
import torch

from attnbench.kernels.append import append_row
from attnbench.methods.base import CacheLength, CacheView, LayerShape
from attnbench.methods.registry import parse

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def cached(batch: int, kv_heads: int, head_dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(head_dim)
    size = (2, batch, kv_heads, 37, head_dim)
    keys, values = torch.randn(size, generator=generator).half().to(DEVICE)
    return keys.contiguous(), values.contiguous()


def token(batch: int, kv_heads: int, head_dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Key and value as a merged projection gives them: slices of one row a sequence."""
    generator = torch.Generator().manual_seed(7)
    row = torch.randn(batch, 1, 2, kv_heads, head_dim, generator=generator).half().to(DEVICE)
    k, v = (row[:, :, part].transpose(1, 2) for part in range(2))
    return k, v


@pytest.mark.parametrize("row", [0, 1, 16, 36])
@pytest.mark.parametrize(("batch", "kv_heads", "head_dim"), [(1, 1, 64), (3, 8, 80), (2, 3, 128)])
def test_the_row_is_written_in_every_head_and_nothing_else(batch, kv_heads, head_dim, row):
    keys, values = cached(batch, kv_heads, head_dim)
    k, v = token(batch, kv_heads, head_dim)
    expected = keys.clone(), values.clone()
    for rows, new in zip(expected, (k, v), strict=True):
        rows[:, :, row : row + 1] = new
    append_row(k, v, keys, values, row)
    assert torch.equal(keys, expected[0])
    assert torch.equal(values, expected[1])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_a_layer_appends_with_it_what_it_appends_without():
    keys, values = cached(2, 3, 64)
    k, v = token(2, 3, 64)
    shape = LayerShape(2, 6, 3, 64, 37, torch.float16, DEVICE, 0, 1.0)
    layer = parse("sdpa").layer(shape)
    layer.prefill(CacheView(keys, values, CacheLength(DEVICE, 20)))
    seen_keys, seen_values = layer.append(k, v)
    assert seen_keys.shape == seen_values.shape == (2, 3, 21, 64)
    assert torch.equal(seen_keys[:, :, 20:], k)
    assert torch.equal(seen_values[:, :, 20:], v)
