"""What is counted of an arm's attention is what it attends to, whatever it says of itself."""

from __future__ import annotations

import math
from dataclasses import dataclass

import msgspec
import pytest
import torch
from torch import Tensor

from attnbench.measure import influence
from attnbench.measure.events import Doing
from attnbench.measure.influence import (
    REPLAY_ROUNDS,
    REPLAYED_STEPS,
    SURPRISES,
    influence_of,
    probe_arms,
    replayed,
)
from attnbench.measure.planted import Planted, even_scores
from attnbench.measure.world import World
from attnbench.methods.base import CacheView
from attnbench.methods.reference import exact_attention
from attnbench.protocol.cell import Mode, Scope
from attnbench.protocol.integrity import (
    ERROR_BOUND,
    OWN_SLACK,
    SHARE_TOLERANCE,
    Influence,
    Replay,
    declares_more,
    keeps_more,
    reads_more,
)
from attnbench.protocol.verdict import Reason
from tests.measure.broken import Broken, GoodLayer
from tests.measure.fake_workers import FakeWorkers
from tests.measure.simulated import Muted
from tests.measure.standing import CPU, arm, cell, standing, with_arms

TOKENS = 100
LONG = msgspec.structs.replace(CPU, context=TOKENS)
WIDE = "llama-biased"  # 64 channels, to plant as many tokens


def mutant(name: str) -> str:
    return f"tests.measure.test_influence:{name}"


class PartLayer(GoodLayer):
    """Attends to the rows that `kept` says, of each KV head."""

    def kept(self, head: int, rows: Tensor) -> Tensor:
        return rows

    def decode(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        keys, values = self.append(k, v)
        rows = torch.arange(keys.shape[2])
        heads = [
            exact_attention(
                queries,
                keys[:, [head]][:, :, self.kept(head, rows)],
                values[:, [head]][:, :, self.kept(head, rows)],
                self.shape.scale,
            )
            for head, queries in enumerate(torch.split(q, self.shape.group, dim=1))
        ]
        return torch.cat(heads, dim=1).to(q.dtype)


class SkipsFirstHalf(Broken):
    class spoilt(PartLayer):  # noqa: N801
        def kept(self, head: int, rows: Tensor) -> Tensor:
            return rows[TOKENS // 2 :]


class SkipsOneLayer(Broken):
    class spoilt(PartLayer):  # noqa: N801
        def kept(self, head: int, rows: Tensor) -> Tensor:
            return rows[-1:] if self.shape.layer == 1 else rows


class SkipsOneHead(Broken):
    class spoilt(PartLayer):  # noqa: N801
        def kept(self, head: int, rows: Tensor) -> Tensor:
            return rows[-1:] if head == 1 else rows


class OneHeadOfAGroup(Broken):
    """Every other query head attends to nothing at all."""

    class spoilt(GoodLayer):  # noqa: N801
        def decode(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            out = super().decode(q, k, v)
            out[:, 1::2] = 0
            return out


class CopyCalledSparse(Broken):
    """Dense, over a copy that it declares, and 15 % by its own account."""

    class spoilt(GoodLayer):  # noqa: N801
        def prefill(self, cache: CacheView, q: Tensor | None = None) -> None:
            super().prefill(CacheView(cache.k.clone(), cache.v.clone(), cache.length), q)

        def witness(self):
            return {"kept_share": 0.15}


@dataclass(frozen=True)
class FewBits(Broken):
    """Values rounded to few bits between the least and the greatest of each token."""

    bits: int = 4

    def layer(self, shape):
        return FewBitsLayer(shape, self.bits)


class FewBitsLayer(GoodLayer):
    def __init__(self, shape, bits: int) -> None:
        super().__init__(shape)
        self.steps = 2**bits - 1

    def prefill(self, cache: CacheView, q: Tensor | None = None) -> None:
        least, most = cache.v.amin(-1, keepdim=True), cache.v.amax(-1, keepdim=True)
        worth = ((most - least).double() / self.steps).clamp(min=1e-9)
        codes = ((cache.v.double() - least) / worth).round()
        rounded = (codes * worth + least).to(cache.v.dtype)
        super().prefill(CacheView(cache.k, rounded, cache.length), q)


class DenseCalledSparse(Broken):
    class spoilt(GoodLayer):  # noqa: N801
        def witness(self):
            return {"kept_share": 0.15}


class Listening(Broken):
    """Writes down every query of the first layer, and computes each but once."""

    heard: list[bytes] = []  # noqa: RUF012
    computed: list[bytes] = []  # noqa: RUF012

    class spoilt(GoodLayer):  # noqa: N801
        def __init__(self, shape) -> None:
            super().__init__(shape)
            self.known: dict[bytes, Tensor] = {}

        def decode(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            said = q.numpy().tobytes()
            if said not in self.known:
                self.known[said] = super().decode(q, k, v)
                if self.shape.layer == 0:
                    Listening.computed.append(said)
            if self.shape.layer == 0:
                Listening.heard.append(said)
            return self.known[said].clone()


class ComputesAhead(Broken):
    """Returns what the step before it would have been right to return."""

    class spoilt(GoodLayer):  # noqa: N801
        ready: Tensor | None = None

        def decode(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            before, self.ready = self.ready, super().decode(q, k, v)
            return (self.ready if before is None else before).clone()


class ChangesAndRaises(Broken):
    """From its second step on, so that it can be set up."""

    class spoilt(GoodLayer):  # noqa: N801
        steps = 0

        def decode(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            self.steps += 1
            if self.steps > 1:
                torch.set_default_dtype(torch.float64)
                raise IndexError("block 7 is out of range")
            return super().decode(q, k, v)


def seen_of(
    method: str, dtype: str = "float32", architecture: str = WIDE, seed: int = 1
) -> Influence:
    bench = msgspec.structs.replace(with_arms("sdpa", bench=LONG), dtype=dtype)
    with standing(bench, architecture) as stands:
        planted = Planted(stands, seed)
        even_scores(stands)
        return influence_of(stands, arm(method, "x"), Mode.EAGER, planted).influence


def near(share: float, planted: int) -> object:
    return pytest.approx(share, abs=SHARE_TOLERANCE + 4 * (share * (1 - share) / planted) ** 0.5)


def faults(seen: Influence) -> list[bool]:
    return [declares_more(seen), reads_more(seen), keeps_more(seen)]


@pytest.fixture(autouse=True)
def steps_are_short(monkeypatch):
    """However busy the machine is: a step that took long would be replayed in one round, and one
    that was held up in several."""
    monkeypatch.setattr(influence, "LONG_STEP_US", math.inf)
    monkeypatch.setattr(influence, "looks_known", lambda found: False)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("method", ["sdpa", "sdpa_repeat_kv", "eager_repeat_kv", "Exact"])
def test_every_token_has_influence_in_every_layer_of_an_exact_method(method, dtype):
    found = seen_of(method, dtype)
    assert (found.counted, found.least, found.declared, found.read) == (1.0, 1.0, 1.0, 1.0)
    assert found.planted == 3 * 2 * 2 * 8  # layers, sequences, KV heads, rows
    assert found.own < OWN_SLACK


@pytest.mark.parametrize("architecture", ["llama", "gemma3", "gpt2"])
def test_every_full_attention_layer_of_a_model_is_looked_at_and_no_other(architecture):
    found = seen_of("sdpa", architecture=architecture)
    assert (found.counted, found.least) == (1.0, 1.0)
    layers = 2 if architecture == "gemma3" else 3
    assert found.planted % layers == 0


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize(
    ("method", "share"),
    [
        ("sink_window,window=16,impl=torch", 20 / 101),
        ("random_k", 16 / 101),
        ("random_k,share=0.5", 51 / 101),
        ("int8_kv,impl=torch", 1.0),
        ("int4_kv,group=16", 1.0),
        ("int4_kv,keys=token,group=24", 1.0),
        ("int4_kv,values=exact,group=32", 1.0),
        ("fp8_kv,impl=torch", 1.0),
        ("oracle_topk", 15 / 101),
        ("oracle_topk,shared=true", 15 / 101),
        ("oracle_topk,share=0.5", 50 / 101),
        ("dcr_topk,k_min=4", 16 / 101),
        ("dcr_topk,k_min=4,sharing=group,scorer=cache", 16 / 101),
        ("dcr_topk", 64 / 101),
        ("uniform_mean", 1.0),
        ("zero_cost", 0.0),
        (mutant("FewBits,bits=4"), 1.0),
        (mutant("FewBits,bits=2"), 1.0),
        ("tests.evil.knows_probes:ValueAware", 26 / 101),
    ],
)
def test_what_is_counted_of_an_honest_method_is_what_it_declares(method, share, dtype):
    found = seen_of(method, dtype)
    assert found.declared == pytest.approx(share)
    assert found.counted == near(share, found.planted)
    assert not declares_more(found)
    assert not reads_more(found)


@pytest.mark.parametrize(
    ("method", "dtype", "share"),
    [
        ("mean_k_axis,k_min=8", "float32", 17 / 101),
        ("abkv,k_min=8", "bfloat16", 17 / 101),
        ("abkv,mode=B,k_min=8", "float32", 17 / 101),
        ("rank_window,k_min=8,edge=shift", "bfloat16", 17 / 101),
        ("topk_warm,k_min=8,recent=4,refresh=6", "float32", 16 / 101),
        ("topk_warm,k_min=8,recent=4,refresh=6", "bfloat16", 16 / 101),
    ],
)
def test_what_is_counted_of_a_selection_is_what_it_declares(method, dtype, share):
    found = seen_of(method, dtype)
    assert found.declared == pytest.approx(share)
    assert found.counted == near(share, found.planted)
    assert faults(found)[:2] == [False, False]


def test_a_window_whose_size_depends_on_the_data_declares_what_it_held():
    found = seen_of("rank_window,k_min=80")
    assert 41 / 101 <= found.declared <= 81 / 101
    assert found.counted == near(found.declared, found.planted)
    assert faults(found)[:2] == [False, False]


@pytest.mark.parametrize(
    ("method", "dtype", "least"),
    [
        ("aether,variant=scaled,block=4,threshold=share,value=0.3,heads=own", "float32", 0.29),
        ("aether,variant=scaled,block=4,threshold=share,value=0.3", "bfloat16", 0.31),
        ("quest,share=0.2,page=4,dense_layers=0", "float16", 21 / 101),
    ],
)
def test_what_is_counted_of_blocks_that_the_data_choose_is_what_is_declared(method, dtype, least):
    found = seen_of(method, dtype)
    assert least <= found.declared < 0.7
    assert found.counted == near(found.declared, found.planted)
    assert faults(found)[:2] == [False, False]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("bits", [1, 2])
def test_a_share_that_is_met_only_about_is_declared_as_it_was_in_that_step(bits, dtype):
    found = seen_of(
        f"coded_topk,share=0.4,bits={bits},sample=64,recent=8,dense=0,impl=torch", dtype
    )
    assert 0.3 < found.declared < 0.6
    assert found.counted == near(found.declared, found.planted)
    assert faults(found) == [False, False, False]


@pytest.mark.parametrize(
    ("method", "share", "bytes_read"),
    [
        ("sdpa", 1.0, 1.0),
        ("int8_kv,impl=torch", 1.0, 1.0 / 4 + 1 / 64),  # a scale of four bytes for 64 channels
        ("dcr_topk,k_min=4", 16 / 101, (101 + 16) / 202),
        ("quest,share=0.2,page=4,dense_layers=0", 21 / 101, (26 + 21) / 101),
        ("uniform_mean", 1.0, 0.5),
    ],
)
def test_the_bytes_that_must_cover_a_count_are_those_of_the_step_that_was_counted(
    method, share, bytes_read
):
    found = seen_of(method)
    assert found.declared == pytest.approx(share)
    assert found.declared_bytes == pytest.approx(bytes_read, rel=0.03)


@pytest.mark.parametrize(
    ("method", "rest"),
    [
        # A summary of a block: a mean and a radius in float32.
        ("aether,variant=scaled,block=4,threshold=relative,value=0.9", 26 * 65 / (101 * 128)),
        ("aether,variant=scaled,block=4,threshold=mass,value=0.3,heads=own", 26 * 65 / (101 * 128)),
        # Two bits of a key's 32, of every cached one; the levels' width.
        ("coded_topk,share=0.4,sample=64,recent=8,dense=0,impl=torch", 100 / (101 * 32) + 0.005),
    ],
)
def test_where_the_data_choose_how_much_is_read_bytes_and_share_are_of_one_step(method, rest):
    found = seen_of(method)
    read_by_group = found.declared_bytes - rest
    assert found.declared - 0.1 <= read_by_group <= 2 * found.declared + 0.02
    assert faults(found)[:2] == [False, False]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_tokens_that_were_merged_all_have_influence_and_are_not_read_in_a_step(dtype):
    found = seen_of("tests.evil.knows_probes:Merged", dtype)
    rows = 100 // 8 + 100 % 8 + 1
    assert found.declared == rows / 101
    assert found.counted == 1.0
    assert found.read == pytest.approx(1 / 101)
    assert found.own == pytest.approx(rows / 101, rel=0.2)
    assert faults(found) == [False, False, False]


def test_what_is_attended_to_in_a_copy_is_kept_and_not_read_from_the_exact_cache():
    found = seen_of(mutant("CopyCalledSparse"))
    assert (found.counted, found.declared) == (1.0, 0.15)
    assert found.read == pytest.approx(1 / 101)
    assert found.own == pytest.approx(1.0, abs=0.05)
    assert faults(found) == [False, False, True]


@pytest.mark.parametrize(
    ("name", "share", "least"),
    [
        ("SkipsFirstHalf", 0.5, 0.5),
        ("SkipsOneLayer", 2 / 3, 0.01),
        ("SkipsOneHead", 0.5, 0.5),
    ],
)
def test_context_that_is_skipped_is_missing_in_the_count(name, share, least):
    found = seen_of(mutant(name))
    assert found.declared == 1.0
    assert found.counted == near(share, found.planted)
    assert found.least == near(least, found.planted // 3)
    assert declares_more(found)


def test_the_newest_token_counts_as_attended_to():
    assert seen_of(mutant("SkipsOneLayer")).least == pytest.approx(1 / (TOKENS + 1))


def test_what_a_query_head_does_not_attend_to_is_missing_though_another_of_its_group_does():
    found = seen_of(mutant("OneHeadOfAGroup"))
    assert found.counted == pytest.approx(51 / 101)
    assert declares_more(found)


def test_dense_attention_that_calls_itself_sparse_is_counted_as_dense():
    found = seen_of(mutant("DenseCalledSparse"))
    assert (found.counted, found.read, found.declared) == (1.0, 1.0, 0.15)
    assert reads_more(found)


def test_an_arm_that_looks_for_a_planted_cache_at_prefill_is_counted_as_it_is_timed():
    found = seen_of("tests.evil.knows_probes:KnowsPlanted")
    assert found.declared == 1.0
    assert found.counted == near(64 / 101, found.planted)


def test_an_arm_is_left_on_the_cache_that_it_was_set_up_on():
    with standing(with_arms("sdpa", bench=LONG), WIDE) as bench:
        planted = Planted(bench, 1)
        even_scores(bench)
        for method, turned in (("sdpa", False), ("int8_kv,impl=torch", True)):
            before = bench.cache.sha256()
            found = influence_of(bench, arm(method, "x"), Mode.EAGER, planted)
            bench.clear_slot()
            assert (bench.cache.sha256() != before) is turned
            bench.require_intact(thoroughly=True)
            del found


def replay_of(method: str) -> Replay:
    """The replay of one method; what it wrote down is of the replay alone."""
    with standing(with_arms("sdpa")) as bench:
        ready = bench.set_up(arm(method, "x"), Scope.ATTENTION, Mode.EAGER)
        Listening.heard.clear()
        Listening.computed.clear()
        return replayed(bench, ready)


def test_an_arm_is_replayed_on_new_inputs_on_the_same_on_one_that_stays_and_on_ones_just_come():
    replay = replay_of(mutant("Listening"))
    stretch = 1 + REPLAYED_STEPS  # the first is not timed
    a_round = 3 * stretch + REPLAYED_STEPS
    all_heard = Listening.heard
    assert len(all_heard) == REPLAY_ROUNDS * a_round
    fresh, moving = [], []
    for begin in range(0, len(all_heard), a_round):
        heard = all_heard[begin : begin + a_round]
        assert heard[stretch : 2 * stretch] == heard[:stretch]
        assert len(set(heard[2 * stretch : 3 * stretch])) == 1
        fresh += heard[:stretch]
        moving += heard[3 * stretch :]
    assert len({*fresh, *moving}) == len(fresh) + len(moving)
    assert len(fresh) + len(moving) == REPLAY_ROUNDS * (a_round - 2 * stretch)
    for timed_us in (replay.fresh_us, replay.again_us, replay.held_us, replay.moving_us):
        assert len(timed_us) == REPLAY_ROUNDS * REPLAYED_STEPS


def test_long_steps_are_replayed_in_one_round(monkeypatch):
    monkeypatch.setattr(influence, "LONG_STEP_US", 0.0)
    replay = replay_of(mutant("Listening"))
    assert len(replay.fresh_us) == len(replay.moving_us) == REPLAYED_STEPS


@pytest.mark.parametrize(
    ("long_us", "doubts", "rounds"), [(0.0, 2, 3), (math.inf, 5, 6), (0.0, 99, 12)]
)
def test_where_known_inputs_look_quicker_more_rounds_are_taken_up_to_an_end(
    monkeypatch, long_us, doubts, rounds
):
    doubted: list[Replay] = []

    def looks_known(found: Replay) -> bool:
        doubted.append(found)
        return len(doubted) <= (doubts if long_us == 0.0 else doubts - REPLAY_ROUNDS + 1)

    monkeypatch.setattr(influence, "LONG_STEP_US", long_us)
    monkeypatch.setattr(influence, "looks_known", looks_known)
    replay = replay_of(mutant("Listening"))
    assert len(replay.fresh_us) == len(replay.moving_us) == rounds * REPLAYED_STEPS


def test_a_result_kept_by_input_is_computed_at_most_once_while_inputs_stay():
    replay_of(mutant("Listening"))
    fresh = REPLAY_ROUNDS * (1 + 2 * REPLAYED_STEPS)
    assert fresh <= len(Listening.computed) <= fresh + REPLAY_ROUNDS


def test_steps_on_inputs_that_came_just_before_them_are_checked_and_one_in_every_layer():
    found, _ = probed("sdpa", mutant("ComputesAhead"))
    honest, ahead = found.surprises["sdpa"], found.surprises[mutant("ComputesAhead")]
    assert [(check.visit, check.layer) for check in honest[:3]] == [(0, 0), (0, 1), (0, 2)]
    assert [check.visit for check in honest[3:]] == list(range(1, SURPRISES))
    assert len(ahead) == len(honest)
    assert max(check.worst_head for check in honest) < ERROR_BOUND["float32"]
    assert min(check.worst_head for check in ahead) > ERROR_BOUND["float32"]


def probed(*methods: str, timed: tuple[str, ...] | None = None):
    """What `probe_arms` finds of these arms, all timed or those in `timed`, and its words."""
    bench, talk = with_arms(*methods, bench=LONG), Muted()
    walked = FakeWorkers()._session((cell(with_arms(*(timed or methods))),), 0)
    with standing(bench, WIDE) as stands:
        return probe_arms(stands, Mode.EAGER, walked, talk, World(stands.device).settle()), talk


def test_every_arm_that_was_timed_is_probed_under_its_name():
    found, talk = probed("sdpa", "random_k", "uniform_mean", timed=("sdpa", "uniform_mean"))
    assert set(found.influence) == set(found.replays) == {"sdpa", "uniform_mean"}
    assert [(m.arm, m.doing) for m in talk.marks] == [
        ("sdpa", Doing.PROBED),
        ("uniform_mean", Doing.PROBED),
    ]
    assert found.failures == {}


@pytest.mark.parametrize(
    ("broken", "reason"), [("Damages", Reason.CACHE_CHANGED), ("Nan", Reason.WRONG_OUTPUT)]
)
def test_an_arm_that_fails_the_probe_fails_alone(broken, reason):
    found, _ = probed(broken, "sdpa")
    assert set(found.failures) == {broken}
    assert found.failures[broken].reason == reason
    assert found.failures[broken].during == "influence"
    assert found.influence["sdpa"].counted == 1.0


def test_what_an_arm_changed_before_it_raised_is_not_laid_on_the_next_arm():
    found, _ = probed(mutant("ChangesAndRaises"), "sdpa")
    (failure,) = found.failures.values()
    assert failure.reason == Reason.GLOBAL_STATE
    assert torch.get_default_dtype() is torch.float32
    assert found.influence["sdpa"].counted == 1.0
