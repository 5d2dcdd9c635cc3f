"""Launch configurations: few, in order, whole waves, and the same for the same shape."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from attnbench.errors import Unsupported
from attnbench.methods import registry, split_kv
from attnbench.methods.base import KernelConfig, LayerShape
from attnbench.methods.split_kv import (
    ASSUMED_SMS,
    EXACT_CANDIDATES,
    INT8_CANDIDATES,
    rows_of,
    whole_waves,
)

HERO = LayerShape(4, 32, 8, 64, 32896, torch.bfloat16, torch.device("cpu"), layer=0, scale=0.125)
SPECS = (
    "flash_decode",
    "int8_kv,impl=triton",
    "sink_window,impl=triton",
    "coded_topk,dense=0,impl=triton",
)


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("head_dim", [32, 64, 128, 256])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_each_shape_is_offered_a_few_configurations_and_always_the_same(spec, head_dim, dtype):
    shape = replace(HERO, head_dim=head_dim, dtype=dtype)
    method = registry.parse(spec)
    offered = method.configurations(shape)
    assert 1 <= len(offered) <= 12
    assert len(set(offered)) == len(offered)
    assert offered == method.configurations(replace(shape, layer=5))


@pytest.mark.parametrize("spec", SPECS)
def test_programs_fill_an_h100_in_whole_waves(spec):
    candidates = INT8_CANDIDATES if spec.startswith("int8") else EXACT_CANDIDATES
    at_once = {ASSUMED_SMS * candidate[3] for candidate in candidates}
    for config in registry.parse(spec).configurations(HERO):
        programs = config.splits * HERO.batch * HERO.kv_heads
        idle = (1 - programs / (-(-programs // slots) * slots) for slots in at_once)
        assert min(idle) <= 0.05, config


def test_implementations_without_a_kernel_offer_nothing_to_choose():
    for spec in ("sdpa", "int8_kv,impl=torch", "sink_window,impl=torch", "zero_cost"):
        assert registry.parse(spec).configurations(HERO) == ()


def test_a_configuration_in_the_shape_replaces_the_default():
    chosen = KernelConfig(block_n=32, splits=5, num_warps=2, num_stages=2)
    for spec in SPECS:
        layer = registry.parse(spec).layer(replace(HERO, kernel=chosen))
        assert layer.config == chosen


def test_splits_never_outnumber_the_tiles_of_the_cache():
    short = replace(HERO, capacity=100)
    for config in registry.parse("flash_decode").configurations(short):
        assert config.splits <= -(-100 // config.block_n)


def test_whole_waves_takes_the_fewest_splits_that_keep_the_gpu_busy():
    assert whole_waves(pairs=32, at_once=264, most=128) == 8
    assert whole_waves(pairs=264, at_once=264, most=128) == 1
    assert whole_waves(pairs=8, at_once=264, most=10) == 10
    assert whole_waves(pairs=512, at_once=264, most=128) == 1


def test_a_tile_holds_a_power_of_two_of_rows_within_the_kernels_limits():
    assert rows_of(32 * 1024, 256) == 128
    assert rows_of(32 * 1024, 260) == 64
    assert rows_of(16 * 1024, 2048) == 16
    assert rows_of(32 * 1024, 64) == 128


def test_a_scan_is_offered_no_tile_that_does_not_fit_in_shared_memory():
    wide = replace(HERO, head_dim=128)
    tiles = {
        bits: {c.block_n for c in registry.parse(spec).configurations(wide)}
        for bits, spec in ((b, f"coded_topk,bits={b},impl=triton") for b in (1, 2, 4))
    }
    assert tiles[2] == tiles[1] == {256, 512, 1024}
    assert tiles[4] == {256, 512}


def test_one_kernel_of_flash_decode_is_offered_alone(monkeypatch):
    monkeypatch.setattr(split_kv, "has_ring", lambda shape: True)
    shape = HERO

    def rings(kernel: str) -> set[bool]:
        offered = registry.parse(f"flash_decode{kernel}").configurations(shape)
        return {bool(config.ring) for config in offered}

    assert rings("") == {True, False}
    assert rings(",kernel=ring") == {True}
    assert rings(",kernel=split") == {False}
    monkeypatch.setattr(split_kv, "has_ring", lambda shape: False)
    with pytest.raises(Unsupported, match="does not run this layer here"):
        registry.parse("flash_decode,kernel=ring").check(shape)
