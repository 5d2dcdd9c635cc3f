"""The cheats run, look healthy and cheat; their twins are honest; nothing of it outlives a test."""

from __future__ import annotations

import os
from importlib import import_module

import pytest
import torch

import tests.evil.common as common
from attnbench.methods.base import Family
from attnbench.methods.conformance import BOUNDS, Outcome
from attnbench.methods.conformance_checks import SMALL, planned
from attnbench.methods.conformance_share import check_share
from attnbench.methods.registry import parse
from tests.evil import undo
from tests.evil.catalogue import CHEATS, HONEST, Cheat, Trace
from tests.evil.process import state
from tests.evil.scene import LAYERS, STEPS, scene, shapes

CPU = torch.device("cpu")
BOUND = BOUNDS[torch.float32]
HERE = [c for c in CHEATS if not c.needs_cuda and not c.own_process]
ON_CUDA = [c for c in CHEATS if c.needs_cuda]
# Leaves nothing that a process could be asked for: an allocator keeps its fragments to itself.
UNSEEN = ("fragments",)


def traced(*traces: Trace) -> list[Cheat]:
    return [cheat for cheat in HERE if cheat.trace in traces]


def cases(cheats: list[Cheat]):
    return pytest.mark.parametrize(
        "cheat", cheats, ids=lambda c: c.spec.removeprefix("tests.evil.")
    )


@pytest.mark.parametrize("cheat", CHEATS, ids=lambda c: c.spec.removeprefix("tests.evil."))
def test_a_cheat_and_its_twin_are_methods_with_a_name_a_family_and_a_source(cheat):
    for method in (parse(cheat.spec), parse(cheat.twin)):
        assert method.label
        assert method.source == "tests/evil"
        assert method.family in Family
        assert "name" in vars(type(method))
        assert method.layer(shapes("cpu")[0]).shape.layer == 0


def test_no_two_cheats_share_a_spec_and_no_twin_is_a_cheat():
    specs = [cheat.spec for cheat in CHEATS]
    assert len(set(specs)) == len(specs)
    assert not set(specs) & set(HONEST)


@cases(HERE)
def test_a_cheat_returns_finite_outputs_of_the_right_shape_and_dtype(cheat):
    built = scene(parse(cheat.spec))
    for step in built.kept(STEPS + 4):
        for output in step:
            assert output.shape == (2, 8, 1, 32)
            assert output.dtype is torch.float32
            assert bool(torch.isfinite(torch.clone(output)).all())
    witnesses = [layer.witness() for layer in built.layers]
    assert all(0 <= value < float("inf") for one in witnesses for value in one.values())


@cases([c for c in HERE if not c.spec.endswith(("RoundsCache", "ReordersCache"))])
def test_a_cheat_leaves_the_cache_as_it_was_once_it_is_reset(cheat):
    built = scene(parse(cheat.spec))
    before = built.checksums()
    built.timed(5)
    built.step.reset()
    undo.everything()
    assert all(map(torch.equal, built.checksums(), before))


@cases(traced(Trace.OUTPUT))
def test_what_a_cheat_returns_in_a_timed_run_is_not_what_it_declares(cheat):
    built = scene(parse(cheat.spec))
    outputs = built.timed()
    assert built.error(outputs) > 2 * BOUND


@cases(traced(Trace.LATER, Trace.KIND))
def test_what_is_unfinished_when_it_is_returned_is_right_when_one_looks_later(cheat):
    built = scene(parse(cheat.spec))
    outputs = built.kept()
    for layer in built.layers:
        layer.reset()
    looked = [tuple(output.clone() for output in step) for step in outputs]
    assert built.error(looked) < BOUND


@cases(traced(Trace.KIND))
def test_the_memory_of_a_lazy_output_does_not_hold_the_result(cheat):
    output = scene(parse(cheat.spec)).kept(1)[0][0]
    plain = type(output) is torch.Tensor
    assert not plain or "clone" in vars(output)


@cases([c for c in traced(Trace.WORK, Trace.CLOCK) if parse(c.spec).family is Family.EXACT])
def test_some_cheats_return_what_is_right(cheat):
    built = scene(parse(cheat.spec))
    for _ in range(2):
        assert built.error(built.timed()) < BOUND
        built.step.reset()


@cases([c for c in traced(Trace.WORK) if parse(c.spec).family is Family.EXACT])
def test_and_do_less_for_it_in_a_timed_run_than_one_attention_a_layer_and_step(cheat, monkeypatch):
    built = scene(parse(cheat.spec))
    built.timed()
    built.step.reset()
    calls = []
    attend = common.AttendingLayer.attend
    monkeypatch.setattr(
        common.AttendingLayer, "attend", lambda *given: calls.append(1) or attend(*given)
    )
    built.timed()
    if not cheat.spec.endswith("AllLayersAtOnce"):  # which does as much, at an impossible time
        assert len(calls) <= LAYERS * STEPS // 4


def test_selection_of_a_fixed_cost_in_untimed_steps_happens_once_a_visit(monkeypatch):
    moved = import_module("tests.evil.false_witness")
    selections = []
    real = moved.top_rows
    monkeypatch.setattr(moved, "top_rows", lambda *a: selections.append(1) or real(*a))
    built = scene(parse("tests.evil.moved_cost:SelectsEvery64"))
    selections.clear()
    built.timed()
    assert len(selections) == LAYERS


@cases([c for c in traced(Trace.PROCESS) if not any(what in c.spec for what in UNSEEN)])
def test_the_process_is_not_what_it_was(cheat):
    before = state()
    built = scene(parse(cheat.spec))
    built.timed(3)
    for layer in built.layers:
        layer.reset()
    assert state() != before


@cases([c for c in HERE if c.spec.endswith("when=reset")])
def test_what_is_left_at_reset_is_gone_while_the_cheat_itself_is_timed(cheat):
    before = state()
    built = scene(parse(cheat.spec))
    for _ in range(2):
        built.timed(3)
        assert state() == before
        built.step.reset()


@cases(traced(Trace.STATE))
def test_hidden_state_is_declared_as_a_fraction_of_what_its_outputs_need(cheat):
    built = scene(parse(cheat.spec))
    declared = sum(t.untyped_storage().nbytes() for t in built.layers[0].tensors())
    needed = sum(rows.nbytes for rows in (built.cache.views[0].k, built.cache.views[0].v))
    assert declared < needed / 2
    assert built.error(built.timed()) < BOUND


@pytest.mark.parametrize("name", ["DenseCalledSparse", "SilentFallback"])
def test_a_witness_of_sparseness_is_false(name):
    found = check_share(parse(f"tests.evil.false_witness:{name}"), torch.float32, CPU)
    assert found.outcome is Outcome.FAILED


def test_a_method_without_a_witness_attends_to_more_than_its_name_says():
    built = scene(parse("tests.evil.false_witness:NoWitness"))
    assert built.error(built.timed(1)) > BOUND
    assert "kept_share" not in built.layers[0].witness()


def test_the_bytes_of_one_row_are_less_than_those_of_what_is_attended_to():
    built = scene(parse("tests.evil.false_witness:ReadsNothing"))
    assert built.error(built.timed(1)) < BOUND
    layer = built.layers[0]
    assert layer.bytes_read() < layer.witness()["attended_tokens"] * layer.shape.row_bytes


@cases([c for c in CHEATS if c.own_process])
def test_what_cannot_be_taken_back_is_done_in_a_process_of_its_own(cheat):
    child = os.fork()
    if child == 0:
        status = 1
        try:
            torch.set_num_threads(1)
            before = state()
            built = scene(parse(cheat.spec))
            built.timed(3)
            status = 0 if state() != before else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize("spec", [s for s in HONEST if "cuda_" not in s])
def test_an_honest_twin_passes_the_conformance_suite_and_leaves_the_process_alone(spec):
    before = state()
    for name, check in planned(parse(spec), CPU, (SMALL,), (torch.float32,)):
        found = check()
        assert found.outcome is not Outcome.FAILED, f"{name}: {found}"
    assert state() == before


@pytest.mark.gpu
@cases(ON_CUDA)
def test_a_cheat_on_a_gpu_returns_finite_outputs_of_the_right_shape(cheat):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA GPU")
    built = scene(parse(cheat.spec), "cuda")
    for step in built.kept():
        torch.cuda.synchronize()
        assert all(x.shape == (2, 8, 1, 32) and bool(x.isfinite().all()) for x in step)
    built.step.reset()


@pytest.mark.gpu
@pytest.mark.parametrize("spec", [s for s in HONEST if "cuda_" in s])
def test_an_honest_twin_on_a_gpu_passes_the_conformance_suite(spec):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA GPU")
    for name, check in planned(parse(spec), torch.device("cuda"), (SMALL,), (torch.float32,)):
        found = check()
        assert found.outcome is not Outcome.FAILED, f"{name}: {found}"
