"""The Triton kernels where conformance does not go: wide groups, odd splits, strided inputs."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from attnbench.methods import registry
from attnbench.methods.base import KernelConfig
from attnbench.methods.conformance import BOUNDS, Outcome, conform, worst_error
from attnbench.methods.trial import Case, Step, Trial

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SPECS = ("flash_decode", "int8_kv,impl=triton", "sink_window,sinks=20,window=40,impl=triton")
DTYPE = torch.float16


def error(spec: str, case: Case, config: KernelConfig | None = None, appended: int = 2) -> float:
    """The worst error of a kernel against its method's reference."""
    method = registry.parse(spec)
    trial = Trial.make(case, DTYPE, DEVICE, appended, seed=5)
    layer = method.layer(replace(trial.shape, kernel=config))
    return worst_error(
        trial.appended_by(layer), trial.appended_by(method.reference_layer(trial.shape))
    )[0]


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("group", [2, 7, 16, 20])
def test_any_group_size_is_padded_to_what_the_tensor_core_takes(spec, group):
    assert error(spec, Case(50, 64, group)) < BOUNDS[DTYPE]


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("head_dim", [32, 256])
def test_the_smallest_and_the_largest_head_dimension_work(spec, head_dim):
    assert error(spec, Case(70, head_dim, 4)) < BOUNDS[DTYPE]


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("splits", [1, 3, 7, 40])
def test_any_number_of_splits_works_also_more_than_there_are_tiles(spec, splits):
    config = KernelConfig(block_n=32, splits=splits, num_warps=4, num_stages=2)
    assert error(spec, Case(130, 64, 3), config) < BOUNDS[DTYPE]


@pytest.mark.parametrize("spec", SPECS)
def test_the_merge_goes_over_more_splits_than_it_holds_at_a_time(spec):
    config = KernelConfig(block_n=16, splits=37, num_warps=4, num_stages=2)
    assert error(spec, Case(600, 128, 8, kv_heads=1), config, appended=1) < BOUNDS[DTYPE]


@pytest.mark.parametrize("spec", SPECS)
def test_appending_crosses_a_tile_and_a_page_boundary(spec):
    config = KernelConfig(block_n=32, splits=2, num_warps=4, num_stages=2)
    assert error(spec, Case(30, 64, 4, kv_heads=1), config, appended=5) < BOUNDS[DTYPE]


@pytest.mark.parametrize("spec", SPECS)
def test_inputs_as_a_model_lays_them_out_give_the_same_bits(spec):
    trial = Trial.make(Case(40, 64, 4, batch=2), DTYPE, DEVICE, 1)
    step = trial.steps[0]

    def as_projected(x: torch.Tensor) -> torch.Tensor:
        return x.transpose(1, 2).contiguous().transpose(1, 2)

    strided = replace(
        trial, steps=(Step(as_projected(step.q), as_projected(step.k), as_projected(step.v)),)
    )
    method = registry.parse(spec)
    outputs = [t.first_output(method.layer(trial.shape)) for t in (trial, strided)]
    assert torch.equal(*outputs)


def test_the_exact_kernel_appends_the_new_row_and_touches_no_other():
    trial = Trial.make(Case(40, 64, 4), DTYPE, DEVICE, 1)
    layer, cache = registry.parse("flash_decode").layer(trial.shape), trial.cache()
    layer.prefill(cache)
    before = cache.k.clone(), cache.v.clone()
    step = trial.steps[0]
    layer.decode(step.q, step.k, step.v)
    for rows, new, old in ((cache.k, step.k, before[0]), (cache.v, step.v, before[1])):
        assert torch.equal(rows[:, :, 40:41], new)
        old[:, :, 40:41] = new
        assert torch.equal(rows, old)


def test_the_int8_kernel_appends_the_codes_that_pytorch_computes():
    trial = Trial.make(Case(40, 64, 4), DTYPE, DEVICE, 3)
    kept = {}
    for impl in ("triton", "torch"):
        layer, cache = registry.parse(f"int8_kv,impl={impl}").layer(trial.shape), trial.cache()
        layer.prefill(cache)
        list(trial.continued(layer, cache))
        values = layer.v_codes.mT.flatten(2, 3)[:, :, :43]
        kept[impl] = (layer.k_codes[:, :, :43], values, layer.v_scale[:, :, :43])
    for in_triton, in_torch in zip(kept["triton"], kept["torch"], strict=True):
        assert torch.equal(in_triton, in_torch)


@pytest.mark.parametrize("spec", SPECS)
def test_every_launch_leaves_the_counters_at_zero_for_the_next(spec):
    trial = Trial.make(Case(90, 64, 4), DTYPE, DEVICE, 2)
    layer = registry.parse(spec).layer(trial.shape)
    list(trial.appended_by(layer))
    counters = [tensor for tensor in layer.tensors() if tensor.dtype == torch.int32]
    assert len(counters) == 1
    assert int(counters[0].abs().sum()) == 0


@pytest.mark.parametrize("spec", ["flash_decode", "int8_kv,impl=triton"])
def test_kernels_conform(spec):
    checks = conform(registry.parse(spec), DEVICE, dtypes=(torch.float32,))
    assert [check for check in checks if check.outcome is Outcome.FAILED] == []


def test_a_small_window_conforms_in_triton():
    method = registry.parse("sink_window,window=24,impl=triton")
    checks = conform(method, DEVICE, dtypes=(torch.float32,))
    assert [check for check in checks if check.outcome is Outcome.FAILED] == []
