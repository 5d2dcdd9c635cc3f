"""Steps that were timed are compared with what the method is, in all layers that were picked."""

from __future__ import annotations

import math
from dataclasses import replace

import msgspec
import pytest
import torch
from torch import Tensor

from attnbench.measure.events import Doing, Pick, Wanted
from attnbench.measure.recheck import MOST, errors, rechecked
from attnbench.measure.visits import Walk
from attnbench.methods.exact_cache import ExactCacheLayer
from attnbench.protocol.cell import Mode, Scope
from attnbench.protocol.integrity import ERROR_BOUND, REST_OF_STEP, StepCheck
from tests.measure.broken import Broken, Good, GoodLayer
from tests.measure.simulated import Muted, SimulatedGuard
from tests.measure.standing import arm, standing, with_arms

LAYERS = 3


def mutant(name: str) -> str:
    return f"tests.measure.test_recheck:{name}"


class Stale(Broken):
    """What it returned in its first step, again and again."""

    class spoilt(GoodLayer):  # noqa: N801
        first: Tensor | None = None

        def decode(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            now = super().decode(q, k, v)
            self.first = now if self.first is None else self.first
            return self.first.clone()


class HalfComputed(Broken):
    """The second half of the heads stays as it was allocated."""

    class spoilt(GoodLayer):  # noqa: N801
        def decode(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            out = super().decode(q, k, v)
            out[:, out.shape[1] // 2 :] = 0
            return out


class WrongLastLayer(Broken):
    class spoilt(GoodLayer):  # noqa: N801
        def decode(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            out = super().decode(q, k, v)
            return out * 1.01 if self.shape.layer == LAYERS - 1 else out


class WrongSecondVisit(Broken):
    """Right when it is set up and for the two steps of its first visit."""

    class spoilt(GoodLayer):  # noqa: N801
        steps = 0

        def decode(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            self.steps += 1
            out = super().decode(q, k, v)
            return out * 1.01 if self.steps > 3 else out


class NoDefinition(Good):
    """Works, but what it is cannot be computed, and leaves its row in the cache."""

    def reference_layer(self, shape):
        return Undefined(shape)


class Undefined(ExactCacheLayer):
    def decode(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        self.append(k, v)
        raise IndexError("block 7 is out of range")


class NanDefinition(Good):
    def reference(self, q: Tensor, k: Tensor, v: Tensor, shape) -> Tensor:
        return super().reference(q, k, v, shape) * math.nan


def checked(*methods: str, scope: Scope = Scope.ATTENTION, dtype: str = "float32", steps: int = 2):
    """Two visits of some steps of each method: the checks of both in all layers, walk and words."""
    bench = msgspec.structs.replace(with_arms(*methods), dtype=dtype)
    walk, talk = Walk(), Muted()
    with standing(bench) as stands:
        before = stands.cache.sha256()
        for each in bench.arms:
            ready = stands.set_up(each, scope, Mode.EAGER)
            for _ in range(2):
                for _ in range(steps):
                    ready.step()
                walk.kept.setdefault(each.label, []).append(ready.kept())
            ready.inspect(thoroughly=True)
        picks = tuple(
            Pick(arm=each.label, visit=visit, layer=layer)
            for each in bench.arms
            for visit in range(2)
            for layer in range(LAYERS)
        )
        found = rechecked(stands, Mode.EAGER, walk, Wanted(picks=picks), talk, SimulatedGuard())
        assert stands.cache.sha256() == before
    return found, walk, talk


def worst(checks: tuple[StepCheck, ...]) -> float:
    return max(check.worst_head for check in checks)


@pytest.mark.parametrize("scope", list(Scope))
@pytest.mark.parametrize(
    "method",
    [
        "sdpa",
        "eager_repeat_kv",
        "int8_kv,impl=torch",
        "sink_window,window=8,impl=torch",
        "int4_kv,group=4",
        "oracle_topk",
        "coded_topk,share=0.3,sample=64,sinks=1,recent=2,impl=torch",
        "oracle_topk,shared=true",
        "dcr_topk,k_min=4",
        "dcr_topk,k_min=4,sharing=group",
        "aether,variant=scaled,block=4,threshold=share,value=0.4",
        "aether,block=4,governor=g1",
        "random_k",
        "uniform_mean",
        "zero_cost",
    ],
)
def test_steps_of_an_honest_method_are_what_it_is(method, scope):
    (checks,) = checked(method, scope=scope)[0].values()
    assert worst(checks) < ERROR_BOUND["float32"]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_rounding_to_a_dtype_is_allowed_in_that_dtype(dtype):
    (checks,) = checked("sdpa", dtype=dtype)[0].values()
    assert ERROR_BOUND["float32"] < worst(checks) < ERROR_BOUND[dtype]


@pytest.mark.parametrize("name", ["Stale", "HalfComputed", "WrongLastLayer"])
@pytest.mark.parametrize("scope", list(Scope))
def test_steps_that_compute_something_else_are_seen(name, scope):
    (checks,) = checked(mutant(name), scope=scope)[0].values()
    assert worst(checks) > 100 * ERROR_BOUND["float32"]


def test_a_check_says_of_which_layer_and_visit_it_is():
    (checks,) = checked(mutant("WrongLastLayer"))[0].values()
    assert [(c.visit, c.layer) for c in checks] == [(v, n) for v in (0, 1) for n in range(LAYERS)]
    wrong = [c.layer for c in checks if c.worst_head > ERROR_BOUND["float32"]]
    assert wrong == [LAYERS - 1] * 2


def test_of_a_whole_step_what_is_not_attention_is_checked_too():
    (checks,) = checked("sdpa", scope=Scope.STEP)[0].values()
    rest = [check for check in checks if check.layer == REST_OF_STEP]
    assert [check.visit for check in rest] == [0, 1]
    assert worst(rest) < ERROR_BOUND["float32"]


def test_logits_that_do_not_follow_from_what_attention_returned_are_seen():
    with standing(with_arms("sdpa")) as bench:
        ready = bench.set_up(arm("sdpa"), Scope.STEP, Mode.EAGER)
        ready.step()
        kept = ready.kept()
        ready.inspect(thoroughly=True)
        spoilt = replace(kept, step=replace(kept.step, logits=kept.step.logits * 1.01))
        walk = Walk(kept={"sdpa": [spoilt]})
        wanted = Wanted(picks=tuple(Pick(arm="sdpa", visit=0, layer=n) for n in range(LAYERS)))
        found = rechecked(bench, Mode.EAGER, walk, wanted, Muted(), SimulatedGuard())
    wrong = {c.layer for c in found["sdpa"] if c.worst_head > ERROR_BOUND["float32"]}
    assert wrong == {REST_OF_STEP}


def test_layers_of_a_model_with_sliding_windows_are_named_as_the_model_names_them():
    with standing(with_arms("sdpa"), "gemma3") as bench:
        ready = bench.set_up(arm("sdpa"), Scope.ATTENTION, Mode.EAGER)
        ready.step()
        walk = Walk(kept={"sdpa": [ready.kept()]})
        ready.inspect(thoroughly=True)
        picks = tuple(Pick(arm="sdpa", visit=0, layer=layer) for layer in range(2))
        found = rechecked(bench, Mode.EAGER, walk, Wanted(picks=picks), Muted(), SimulatedGuard())
    assert [check.layer for check in found["sdpa"]] == [1, 3]
    assert worst(found["sdpa"]) < ERROR_BOUND["float32"]


def test_a_step_is_compared_with_what_it_should_have_been_itself():
    (checks,) = checked(mutant("WrongSecondVisit"))[0].values()
    wrong = {check.visit for check in checks if check.worst_head > ERROR_BOUND["float32"]}
    assert wrong == {1}


def test_only_what_was_picked_is_checked():
    with standing(with_arms("sdpa", "zero_cost")) as bench:
        ready = bench.set_up(arm("sdpa"), Scope.ATTENTION, Mode.EAGER)
        ready.step()
        walk = Walk(kept={"sdpa": [ready.kept()] * 3, "zero_cost": []})
        wanted = Wanted(picks=(Pick(arm="sdpa", visit=2, layer=1),))
        found = rechecked(bench, Mode.EAGER, walk, wanted, Muted(), SimulatedGuard())
    assert {label: [(c.visit, c.layer) for c in own] for label, own in found.items()} == {
        "sdpa": [(2, 1)]
    }


@pytest.mark.parametrize("order", [1, -1], ids=["first", "last"])
def test_an_arm_whose_definition_cannot_be_computed_is_dropped_alone(order):
    broken = mutant("NoDefinition")
    found, walk, _ = checked(*(broken, "sdpa")[::order])
    assert set(found) == {"sdpa"}
    assert worst(found["sdpa"]) < ERROR_BOUND["float32"]
    assert walk.failures[broken].message == "block 7 is out of range"
    assert walk.failures[broken].during == "checks"
    assert set(walk.kept) == {"sdpa"}


def test_the_parent_is_told_whose_steps_are_checked():
    _, _, talk = checked("sdpa", "zero_cost")
    assert [(mark.arm, mark.doing) for mark in talk.marks] == [
        ("sdpa", Doing.PROBED),
        ("zero_cost", Doing.PROBED),
    ]


def test_a_check_against_what_is_no_number_is_wrong_and_survives_json():
    (checks,) = checked(mutant("NanDefinition"))[0].values()
    again = msgspec.json.decode(msgspec.json.encode(checks), type=tuple[StepCheck, ...])
    assert again == checks
    assert {(check.error, check.worst_head) for check in checks} == {(MOST, MOST)}


def apart(out: Tensor, right: Tensor) -> tuple[float, float]:
    return errors(out, right.double())


def outputs(heads: int = 4) -> Tensor:
    return torch.randn(2, heads, 1, 8, generator=torch.Generator().manual_seed(3))


def test_errors_are_relative_to_what_is_right():
    right = outputs()
    assert apart(right, right) == (0, 0)
    assert apart(1.5 * right, right) == pytest.approx((0.5, 0.5))
    assert apart(150 * right, 100 * right) == pytest.approx((0.5, 0.5))


def test_one_wrong_head_of_many_shows_as_the_worst():
    right = outputs(heads=32)
    wrong = right.clone()
    wrong[1, 5] = -right[1, 5]
    error, worst_head = apart(wrong, right)
    assert worst_head == pytest.approx(2)
    assert error < 0.5


def test_a_head_that_is_zero_where_it_should_be_is_right():
    right = outputs()
    right[0, 2] = 0
    assert apart(right, right) == (0, 0)
    assert apart(torch.zeros_like(right), torch.zeros_like(right)) == (0, 0)


def test_a_head_that_is_not_zero_where_it_should_be_is_as_wrong_as_can_be():
    right = outputs()
    right[0, 2] = 0
    wrong = right.clone()
    wrong[0, 2, 0, 0] = 1e-6
    error, worst_head = apart(wrong, right)
    assert worst_head == MOST
    assert error < 1e-5


@pytest.mark.parametrize("odd", [math.nan, math.inf])
def test_what_is_no_number_is_as_wrong_as_can_be(odd):
    right, wrong = outputs(), outputs()
    wrong[1, 3, 0, 7] = odd
    assert apart(wrong, right) == (MOST, MOST)
    assert apart(right, torch.full_like(right, math.nan)) == (MOST, MOST)
