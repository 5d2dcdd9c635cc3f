"""What the cheats that change their inputs change: the query, the cache, the table, the model."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from attnbench.methods.conformance import BOUNDS
from attnbench.methods.registry import parse
from tests.evil.scene import scene

BOUND = BOUNDS[torch.float32]


@pytest.mark.parametrize("name", ["ScalesQuery", "ScalesAndUnscales"])
def test_the_query_is_not_what_it_was(name):
    built = scene(parse(f"tests.evil.in_place:{name}"))
    generator = torch.Generator().manual_seed(1)
    q = torch.randn(2, 8, 1, 32, generator=generator)
    given = q.clone()
    built.layers[0].decode(q, *(torch.randn(2, 2, 1, 32, generator=generator) for _ in range(2)))
    assert not torch.equal(q, given)
    assert torch.allclose(q, given) == (name == "ScalesAndUnscales")


@pytest.mark.parametrize("name", ["RoundsCache", "ReordersCache"])
def test_the_shared_cache_is_not_what_it_was(name):
    honest = scene(parse("sdpa"))
    assert honest.error(honest.timed()) < BOUND
    spoilt = scene(parse(f"tests.evil.in_place:{name}"))
    assert not any(map(torch.equal, spoilt.checksums(), honest.checksums()))


def test_a_reordered_cache_still_gives_the_outputs_it_gave():
    spoilt = scene(parse("tests.evil.in_place:ReordersCache"))
    assert spoilt.error(spoilt.timed()) < BOUND


def test_all_rows_of_a_frozen_table_are_the_first():
    built = scene(parse("tests.evil.in_place:FreezesTheTable"))
    outputs = built.timed()
    assert all(torch.equal(step[0], outputs[0][0]) for step in outputs)


class Block(nn.Module):
    """Attention, a projection and an MLP, as in a decoder layer, around one layer of a scene."""

    class Attention(nn.Module):
        def __init__(self, layer):
            super().__init__()
            self.layer, self.o_proj = layer, nn.Linear(32, 32, bias=False)

        def forward(self, q, k, v):
            return self.o_proj(self.layer.decode(q, k, v))

    def __init__(self, layer):
        super().__init__()
        self.self_attn, self.mlp = self.Attention(layer), nn.Linear(32, 32)

    def forward(self, q, k, v):
        attended = self.self_attn(q, k, v)
        return attended, self.mlp(attended)


@pytest.mark.parametrize(
    ("name", "silent"), [("SilencesTheProjection", (True, False)), ("SkipsTheMlp", (False, True))]
)
def test_the_model_around_a_cheat_is_not_what_it_was(name, silent):
    built = scene(parse(f"tests.evil.in_place:{name}"))
    block = Block(built.layers[0])
    given = (torch.randn(2, heads, 1, 32) for heads in (8, 2, 2))
    outputs = block(*given)
    assert tuple(not bool(output.any()) for output in outputs) == silent
    assert bool(block.mlp(torch.ones(32)).any())
