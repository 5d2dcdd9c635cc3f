"""What arms share stands as it was handed out, or the arm that changed it is told."""

from __future__ import annotations

from typing import ClassVar

import msgspec
import pytest
import torch
from torch import Tensor

from attnbench.errors import SessionLost, Unsupported
from attnbench.measure.arms import BrokenArm
from attnbench.measure.pilot import Trial
from attnbench.measure.sums import weight_sums
from attnbench.measure.tasks import ArmFailure
from attnbench.measure.workbench import Workbench
from attnbench.measure.world import World
from attnbench.models.tables import RowReader
from attnbench.protocol.cell import Mode, Scope
from attnbench.protocol.verdict import Reason
from tests.measure.broken import Broken, GoodLayer
from tests.measure.simulated import Muted
from tests.measure.standing import arm, standing, with_arms


@pytest.fixture
def bench():
    with standing(with_arms("sdpa")) as stands:
        yield stands


def mutant(name: str) -> str:
    return f"tests.measure.test_workbench:{name}"


class ScalesQuery(Broken):
    class spoilt(GoodLayer):  # noqa: N801
        def decode(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return super().decode(q.mul_(2), k, v)


class NegatesNewKey(Broken):
    class spoilt(GoodLayer):  # noqa: N801
        def decode(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return super().decode(q, k.neg_(), v)


class ChangesSettingAndRaises(Broken):
    class spoilt(GoodLayer):  # noqa: N801
        def decode(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            torch.use_deterministic_algorithms(True)
            raise IndexError("block 7 is out of range")


class KeepsHouse(Broken):
    """Does something more in every 300th step, and says so."""

    class spoilt(GoodLayer):  # noqa: N801
        pass

    @property
    def period(self) -> int:
        return 300


def words(bench: Workbench) -> tuple[Tensor, Tensor]:
    return bench.tables.words, bench.token_words


def reason(bench: Workbench, *, thoroughly: bool = False) -> str:
    with pytest.raises(BrokenArm) as caught:
        bench.require_intact(thoroughly=thoroughly)
    return caught.value.reason


def test_fresh_inputs_lie_where_the_old_ones_did_and_count_as_intact(bench):
    places = [each.data_ptr() for each in words(bench)]
    before = [each.clone() for each in words(bench)]
    bench.freshen(77)
    assert [each.data_ptr() for each in words(bench)] == places
    assert not any(map(torch.equal, words(bench), before))
    bench.require_intact(thoroughly=True)


def test_inputs_are_a_function_of_the_seed_and_tokens_are_those_of_the_text(bench):
    tokens = set(bench._vocabulary.tolist())
    bench.freshen(77)
    first = [each.clone() for each in words(bench)]
    bench.freshen(78)
    assert not any(map(torch.equal, words(bench), first))
    bench.freshen(77)
    assert all(map(torch.equal, words(bench), first))
    drawn, places = bench.token_words[:, :-1].chunk(2, dim=1)
    assert set(drawn.flatten().tolist()) <= tokens
    context = bench.bench.context
    assert context // 2 <= int(places.min()) < int(places.max()) <= context
    assert len(places.unique()) > context // 4


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_varied_inputs_are_the_same_numbers_with_other_signs_and_other_tokens(dtype):
    changed = msgspec.structs.replace(with_arms("sdpa"), dtype=dtype)
    with standing(changed) as bench:
        before = bench.tables.rows.clone()
        tokens, links = bench.token_words.clone(), bench.tables.words[:, -1].clone()
        bench.vary(77)
        now = bench.tables.rows
        assert torch.equal(now.abs(), before.abs())
        turned = (now != before).float()
        assert torch.equal(turned, turned[:1].expand_as(turned))
        assert 0.4 < float(turned.mean()) < 0.6
        assert torch.equal(bench.tables.words[:, -1], links)
        assert not bool((bench.token_words[:, :-1] == tokens[:, :-1]).all(dim=1).any())
        bench.require_intact(thoroughly=True)
        bench.vary(77)
        assert torch.equal(bench.tables.rows, before)


def test_an_arm_whose_periods_are_longer_than_two_visits_could_hold_is_refused(bench):
    with pytest.raises(Unsupported, match="every 300 steps, and a visit times two whole periods"):
        bench.set_up(arm(mutant("KeepsHouse")), Scope.ATTENTION, Mode.EAGER)


class TidiesUp(Broken):
    """Does something more in every third step."""

    done: ClassVar[list[int]] = []

    class spoilt(GoodLayer):  # noqa: N801
        def maintain(self) -> None:
            TidiesUp.done.append(self.shape.layer)

    @property
    def period(self) -> int:
        return 3


def test_what_an_arm_does_in_its_period_follows_every_so_many_steps_visit_after_visit(bench):
    TidiesUp.done.clear()
    ready = bench.set_up(arm(mutant("TidiesUp")), Scope.ATTENTION, Mode.EAGER)
    layers = [shape.layer for shape in bench.tables.shapes]
    assert TidiesUp.done == []
    for step in range(1, 8):
        if step == 5:
            ready.reset()  # as an inspection does between groups of visits
        ready.step()
        assert layers * (step // 3) == TidiesUp.done
    whole = bench.set_up(arm(mutant("TidiesUp")), Scope.STEP, Mode.EAGER)
    TidiesUp.done.clear()
    for _ in range(3):
        whole.step()
    assert layers == TidiesUp.done


def test_held_inputs_are_the_first_rows_for_every_step_and_count_as_intact(bench):
    first = [each[0, :-1].clone() for each in words(bench)]
    links = [each[:, -1].clone() for each in words(bench)]
    bench.hold()
    for each, row, link in zip(words(bench), first, links, strict=True):
        assert bool((each[:, :-1] == row).all())
        assert torch.equal(each[:, -1], link)
    bench.require_intact(thoroughly=True)
    bench.freshen(77)
    assert not bool((bench.tables.words[:, :-1] == first[0]).all(dim=1).any())


@pytest.mark.parametrize("which", [0, 1], ids=["q, k and v", "tokens"])
@pytest.mark.parametrize("row", [0, 63])
def test_an_input_that_an_arm_changed_is_told_and_put_right(bench, which, row):
    words(bench)[which][row, 0] += 1
    assert reason(bench) == Reason.INPUTS_CHANGED
    bench.reclaim()
    bench.require_intact(thoroughly=True)


@pytest.mark.parametrize("which", [0, 1], ids=["q, k and v", "tokens"])
def test_a_table_that_an_arm_froze_is_told_and_goes_on_from_row_to_row_again(bench, which):
    table = words(bench)[which]
    table[:, -1] = 0
    assert reason(bench) == Reason.INPUTS_CHANGED
    bench.reclaim()
    bench.require_intact()
    reader = RowReader(table)
    for row in (*range(table.shape[0]), 0, 1):
        reader.advance()
        assert torch.equal(reader.row, table[row, :-1])


@pytest.mark.parametrize("which", [0, 1], ids=["q, k and v", "tokens"])
def test_rows_of_a_table_that_changed_places_are_told(bench, which):
    table = words(bench)[which]
    table[[3, 4], :-1] = table[[4, 3], :-1]
    assert reason(bench) == Reason.INPUTS_CHANGED


def test_inputs_of_ones_own_are_accepted_when_they_are_said_to_be_right(bench):
    bench.tables.rows[0] = 0
    bench.accept_inputs()
    bench.require_intact()


def test_a_cache_of_ones_own_is_accepted_and_made_again_as_it_was_made(bench):
    def fill() -> None:
        bench.cache.views[0].k[:, :, :3] = 7

    fill()
    bench.accept_cache(fill)
    bench.require_intact(thoroughly=True)
    bench.cache.views[0].k[:, :, 1] = 8
    assert reason(bench) == Reason.CACHE_CHANGED
    bench.reclaim()
    bench.require_intact(thoroughly=True)


def test_the_slot_that_steps_write_may_hold_a_row_until_one_looks_thoroughly(bench):
    bench.cache.views[1].v[:, :, bench.bench.context] = 1
    bench.require_intact()
    assert reason(bench, thoroughly=True) == Reason.CACHE_CHANGED
    bench.reclaim()
    bench.require_intact(thoroughly=True)


def test_rows_that_changed_places_between_heads_are_seen_at_once(bench):
    rows = bench.cache.views[2].k
    rows[0, :, 5] = rows[0, :, 5].flip(0).clone()
    assert reason(bench) == Reason.CACHE_CHANGED


def test_a_changed_weight_loses_the_session_since_nobody_keeps_a_second_model(bench):
    bench.require_intact_model()
    weight = next(bench.loaded.module.parameters())
    with torch.no_grad():
        weight.view(-1)[3] += 1e-3
    with pytest.raises(SessionLost, match="weights") as caught:
        bench.require_intact_model()
    assert caught.value.reason == Reason.WEIGHTS_CHANGED


@pytest.mark.parametrize("what", ["forward", "hook", "class"])
def test_a_changed_module_loses_the_session_too(bench, what):
    part = bench.loaded.module.get_submodule("model.layers.1.mlp")
    if what == "forward":
        part.forward = lambda x: x
    elif what == "hook":
        part.register_forward_hook(lambda module, given, out: out * 0)
    else:
        part.__class__ = torch.nn.Identity
    with pytest.raises(SessionLost) as caught:
        bench.require_intact_model()
    assert caught.value.reason == Reason.WEIGHTS_CHANGED


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.bool])
def test_one_bit_of_one_weight_or_buffer_shows_in_the_sums(dtype):
    module = torch.nn.Linear(3, 5)
    module.register_buffer("buffer", torch.zeros(3, 3, dtype=dtype))
    before = weight_sums(module)
    module.buffer.view(torch.uint8)[2, 1] ^= 1
    after = weight_sums(module)
    assert (before != after).tolist() == [False, False, True]


@pytest.mark.parametrize("name", ["ScalesQuery", "NegatesNewKey"])
def test_a_step_that_changes_its_own_inputs_is_told_in_scope_attention(bench, name):
    ready = bench.set_up(arm(mutant(name), "x"), Scope.ATTENTION, Mode.EAGER)
    ready.step()
    with pytest.raises(BrokenArm, match="q, k or v in place") as caught:
        ready.inspect()
    assert caught.value.reason == Reason.INPUTS_CHANGED


def test_steps_that_leave_everything_alone_pass_every_inspection(bench):
    for scope in Scope:
        ready = bench.set_up(arm("sdpa"), scope, Mode.EAGER)
        for _ in range(3):
            ready.step()
            ready.inspect()
        ready.inspect(thoroughly=True)
    bench.require_intact(thoroughly=True)


def test_an_arm_that_was_left_out_is_refused_with_the_reason_that_it_had(bench):
    bench.broken["sdpa"] = ArmFailure(
        type="WorkerHung", message="it hung", hint="a smaller cell", during="set-up", reason="hung"
    )
    with pytest.raises(BrokenArm, match="it hung") as caught:
        bench.set_up(arm("sdpa"), Scope.STEP, Mode.EAGER)
    assert (caught.value.hint, caught.value.reason) == ("a smaller cell", Reason.HUNG)


def test_what_an_arm_of_the_pilot_changed_before_it_raised_is_not_laid_on_the_next(bench):
    trial = Trial(bench, Mode.EAGER, Muted(), World(bench.device).settle())
    broken = trial.examine(arm(mutant("ChangesSettingAndRaises"), "x"))
    assert broken.failure.reason == Reason.GLOBAL_STATE
    assert not torch.are_deterministic_algorithms_enabled()
    assert trial.examine(arm("sdpa")).failure is None
