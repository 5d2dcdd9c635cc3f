"""The kernels of caches in four bits and in FP8: codes, groups that fill up, odd shapes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from attnbench.errors import Unsupported
from attnbench.methods import registry
from attnbench.methods.base import KernelConfig, LayerShape
from attnbench.methods.conformance import BOUNDS, relative_error, worst_error
from attnbench.methods.fp8_kv import Fp8Kv, codes_of
from attnbench.methods.int4_kv import Int4Kv, largest_tile
from attnbench.methods.trial import Case, Step, Trial, prefilled

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
DTYPE = torch.float16
CONFIG = KernelConfig(block_n=16, splits=2, num_warps=4, num_stages=2)
INT4 = (
    "int4_kv,group=16,impl=triton",
    "int4_kv,group=24,keys=token,impl=triton",
    "int4_kv,group=16,values=exact,impl=triton",
)
FP8 = ("fp8_kv,impl=triton", "fp8_kv,scale=tensor,impl=triton")


def trial_of(case: Case, appended: int = 1, dtype: torch.dtype = DTYPE, **changes) -> Trial:
    """A trial whose layers use `CONFIG`, changed so."""
    trial = Trial.make(case, dtype, DEVICE, appended, seed=5)
    return replace(trial, shape=replace(trial.shape, kernel=replace(CONFIG, **changes)))


def error(spec: str, trial: Trial) -> float:
    method = registry.parse(spec)
    return worst_error(
        trial.appended_by(method.layer(trial.shape)),
        trial.appended_by(method.reference_layer(trial.shape)),
    )[0]


@pytest.mark.parametrize("spec", [*INT4, FP8[0]])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_tokens_are_appended_across_the_end_of_a_group_and_of_a_tile(spec, dtype):
    trial = trial_of(Case(46, 64, 3, kv_heads=1), appended=3, dtype=dtype)
    assert error(spec, trial) < BOUNDS[dtype]


@pytest.mark.parametrize("spec", [INT4[0], INT4[1], FP8[1]])
@pytest.mark.parametrize("tokens", [1, 16])
def test_a_cache_of_one_token_and_one_of_whole_groups_alone_work(spec, tokens):
    assert error(spec, trial_of(Case(tokens, 64, 4, kv_heads=1))) < BOUNDS[DTYPE]


@pytest.mark.parametrize("spec", [INT4[0], INT4[2], FP8[0]])
def test_wide_groups_large_heads_and_more_splits_than_tiles_work(spec):
    trial = trial_of(Case(70, 128, 20, kv_heads=1), splits=7)
    assert error(spec, trial) < BOUNDS[DTYPE]


@pytest.mark.parametrize("spec", [INT4[1], FP8[1]])
def test_every_sequence_and_kv_head_reads_its_own_rows(spec):
    assert error(spec, trial_of(Case(33, 32, 2, batch=2))) < BOUNDS[DTYPE]


@pytest.mark.parametrize("spec", ["int4_kv,group=16", "int4_kv,group=24,keys=token"])
def test_the_int4_kernel_makes_the_codes_that_pytorch_makes(spec):
    trial = trial_of(Case(46, 64, 4, kv_heads=1), appended=3)
    kept = {}
    for impl in ("triton", "torch"):
        layer, cache = registry.parse(f"{spec},impl={impl}").layer(trial.shape), trial.cache()
        layer.prefill(cache)
        list(trial.continued(layer, cache))
        kept[impl] = [t for coded in (layer.keys, layer.values) for t in coded.tensors()]
    assert len(kept["torch"]) == 10
    for in_triton, in_torch in zip(kept["triton"], kept["torch"], strict=True):
        assert torch.equal(in_triton, in_torch)
    assert layer.keys.pairs[:, :, 48 // layer.method.group - 1].any()


@pytest.mark.parametrize("spec", [INT4[0], INT4[1]])
def test_a_step_that_fills_a_group_may_be_repeated_on_other_inputs(spec):
    trial = trial_of(Case(47, 64, 4, kv_heads=1), appended=2)
    method = registry.parse(spec)
    layer, _ = prefilled(method, trial)
    for step in (*trial.steps, trial.steps[0]):
        expected = method.reference_layer(trial.shape)
        expected.prefill(trial.cache())
        out = layer.decode(step.q, step.k, step.v)
        assert relative_error(out, expected.decode(step.q, step.k, step.v)) < BOUNDS[DTYPE]


def test_the_fp8_kernel_rounds_as_pytorch_does_also_the_smallest_and_at_the_limit():
    generator = torch.Generator().manual_seed(1)
    trial = trial_of(Case(8, 256, 1, kv_heads=1), dtype=torch.float32)
    magnitudes = 2.0 ** torch.linspace(-14, 3, 256)
    row = (magnitudes * torch.randn(256, generator=generator)).reshape(1, 1, 1, 256)
    steps = torch.tensor([0.0, 0.5, 1.5, 2.5, 7.5, 8.5, 16, 17, 18, 19]) * 2.0**-9
    limit = torch.tensor([431.0, 433.0, 448.0, 460.0, 1e30])
    trial.k[:], trial.v[:] = 448.0, -448.0  # a code is worth 1
    row[..., : len(steps)], row[..., -len(limit) :] = steps, limit
    layer, _ = prefilled(registry.parse(FP8[0]), trial)
    layer.decode(trial.steps[0].q, row.to(DEVICE), -row.to(DEVICE))
    for codes, worth, given in zip(layer.codes, layer.worth, (row, -row), strict=True):
        expected = codes_of(given.to(DEVICE), worth).float()
        assert torch.equal(codes[:, :, 8:9].float(), expected)
    assert layer.witness()["appended_codes_at_limit"] == 2 * 4  # 433 is nearer to 448 than to 416
    layer.reset()
    assert layer.witness()["appended_codes_at_limit"] == 0


@pytest.mark.parametrize("spec", [INT4[0], FP8[0]])
def test_inputs_as_a_model_lays_them_out_give_the_same_bits_and_counters_end_at_zero(spec):
    trial = trial_of(Case(40, 64, 4))
    step = trial.steps[0]

    def as_projected(x: torch.Tensor) -> torch.Tensor:
        return x.transpose(1, 2).contiguous().transpose(1, 2)

    strided = Step(as_projected(step.q), as_projected(step.k), as_projected(step.v))
    method = registry.parse(spec)
    outputs = []
    for given in (trial, replace(trial, steps=(strided,))):
        layer = method.layer(trial.shape)
        outputs.append(given.first_output(layer))
        assert int(layer.work.finished.abs().sum()) == 0
    assert torch.equal(*outputs)


def test_tiles_lie_within_a_group_whose_keys_share_scales():
    shape = LayerShape(4, 32, 8, 64, 32896, torch.bfloat16, torch.device("cpu"), 0, 0.125)
    assert [largest_tile(group) for group in (16, 48, 128, 96)] == [16, 16, 128, 32]
    for group in (16, 48, 128):
        configs = Int4Kv(group=group, impl="triton").configurations(shape)
        assert configs
        assert all(group % config.block_n == 0 for config in configs)
    assert Int4Kv(impl="torch").configurations(shape) == ()
    chosen = replace(shape, kernel=replace(CONFIG, block_n=64))
    with pytest.raises(Unsupported, match="no tiles of 64 tokens in groups of 16"):
        Int4Kv(group=16, impl="triton").layer(chosen)


def test_what_the_int4_kernel_cannot_tile_is_refused():
    shape = Case(8, 64, 4).shape(DTYPE, DEVICE, 1)
    with pytest.raises(Unsupported, match="a group of 24 tokens holds no whole tiles"):
        Int4Kv(group=24, impl="triton").check(shape)
    Int4Kv(group=24, keys="token", impl="triton").check(shape)
    with pytest.raises(Unsupported, match="head dimension 80"):
        Int4Kv(impl="triton").check(Case(8, 80, 4).shape(DTYPE, DEVICE, 1))


@pytest.mark.parametrize(("capability", "runs"), [((8, 0), False), ((8, 6), False), ((8, 9), True)])
def test_fp8_is_refused_by_a_gpu_without_its_instructions(monkeypatch, capability, runs):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    shape = Case(8, 64, 4).shape(DTYPE, torch.device("cuda"), 1)
    Fp8Kv(impl="torch").check(shape)
    if runs:
        Fp8Kv(impl="triton").check(shape)
        return
    with pytest.raises(Unsupported, match=f"capability is {capability[0]}.{capability[1]}"):
        Fp8Kv(impl="triton").check(shape)
