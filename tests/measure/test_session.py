from __future__ import annotations

import math

import msgspec
import pytest
import torch

from attnbench.errors import ModelError, SessionLost
from attnbench.measure.answers import SessionResult
from attnbench.measure.arms import BenchArm, BrokenArm
from attnbench.measure.exactness import sampled
from attnbench.measure.known import tried_mode, tuned_scope
from attnbench.measure.pilot import TRIAL_STEPS, Trial
from attnbench.measure.session import compile_for, run_session, walk_cells, with_probes
from attnbench.measure.sums import cache_sums
from attnbench.measure.tasks import Fill, SessionTask
from attnbench.measure.world import World
from attnbench.models.tables import full_attention_shapes
from attnbench.protocol.cell import Mode, Scope
from tests.measure.broken import Registers
from tests.measure.simulated import Muted
from tests.measure.standing import CPU, STEPS, arm, cell, standing, with_arms


@pytest.fixture(autouse=True)
def _small_buffer(monkeypatch):
    monkeypatch.setattr("attnbench.measure.bandwidth.CPU_BUFFER_BYTES", 1 << 20)


def session(*methods: str, scope: Scope = Scope.STEP, architecture: str = "llama"):
    bench = with_arms(*methods)
    with standing(bench, architecture) as stands:
        return walk_cells(
            stands, (cell(bench, scope),), STEPS, Muted(), World(stands.device).settle()
        )


@pytest.mark.parametrize("scope", list(Scope))
@pytest.mark.parametrize("architecture", ["llama", "gemma3", "gpt2"])
def test_a_session_times_every_visit_of_the_schedule(scope, architecture):
    result = session("sdpa", "eager_repeat_kv", "zero_cost", scope=scope, architecture=architecture)
    (walked,) = result.cells
    assert walked.failures == {}
    assert len(walked.samples.visits) == 4 * 3
    assert all(2 <= len(visit.steps_us) <= 3 for visit in walked.samples.visits)
    assert all(us > 0 for visit in walked.samples.visits for us in visit.steps_us)
    assert set(walked.samples.warmup_us) == {"sdpa", "eager_repeat_kv", "zero_cost"}
    assert walked.samples.witness["sdpa"]["kept_share"] == 1
    assert walked.samples.witness["zero_cost"]["kept_share"] == 0


def test_a_session_in_mode_compiled_checks_steps_and_finds_a_broken_arm():
    bench = with_arms("sdpa", "zero_cost", "Damages")
    with standing(bench) as stands:
        plan = cell(bench, mode=Mode.COMPILED)
        compile_for(stands, (plan,), Muted())
        assert stands.compiled.graphs == 3
        world = World(stands.device).settle()
        result = walk_cells(stands, (plan,), STEPS, Muted(), world)
        result = with_probes(stands, result, plan.mode, Muted(), world)
    (walked,) = result.cells
    assert set(walked.failures) == {"Damages"}
    assert result.failures == {}
    assert walked.samples.environment["compiled_graphs"] == 3
    assert result.influence["sdpa"].counted == 1.0
    assert set(result.replays) == set(result.surprises) == {"sdpa", "zero_cost"}
    assert len(walked.samples.visits) == 4 * 2
    rest = [c for arm in ("sdpa", "zero_cost") for c in walked.checks[arm] if c.layer < 0]
    assert len(rest) >= 2
    assert max(check.error for check in rest) < 1e-4


def test_the_wall_clock_of_a_visit_holds_its_steps():
    for visit in session("sdpa", "zero_cost").cells[0].samples.visits:
        assert visit.wall_us == pytest.approx(sum(visit.steps_us))


def test_a_result_survives_its_way_through_json():
    result = session("sdpa", "Nan")
    assert msgspec.json.decode(msgspec.json.encode(result), type=SessionResult) == result


@pytest.mark.parametrize(
    ("broken", "kind", "said"),
    [
        ("Nan", "BrokenArm", "NaN"),
        ("Transposed", "BrokenArm", "returned"),
        ("Raises", "IndexError", "block 19"),
        ("Damages", "BrokenArm", "shared cache"),
        ("LeavesTail", "BrokenArm", "shared cache"),
        ("OutOfMemory", "DoesNotFit", "2 TiB"),
    ],
)
@pytest.mark.parametrize("scope", list(Scope))
def test_a_broken_arm_fails_alone_with_its_reason(broken, kind, said, scope):
    (walked,) = session("sdpa", broken, "Good", scope=scope).cells
    failure = walked.failures[broken]
    assert failure.type == kind
    assert said in failure.message
    assert set(walked.failures) == {broken}
    blocks = {visit.block for visit in walked.samples.visits}
    assert len(blocks) == 4
    assert len(walked.samples.visits) == 2 * 4


def test_what_one_arm_damaged_is_whole_again_for_the_next():
    with standing(with_arms("sdpa")) as bench:
        before = cache_sums(bench.cache)
        with pytest.raises(BrokenArm):
            BenchArm(bench, arm("Damages").method, None, Scope.STEP, Mode.EAGER)
        assert not torch.equal(cache_sums(bench.cache), before)
        bench.reclaim()
        assert torch.equal(cache_sums(bench.cache), before)


def test_a_prefill_that_differs_the_second_time_stops_the_session():
    with standing(with_arms("sdpa")) as bench:
        bench.cache.views[0].k[0, 0, 0, 0] += 1
        bench.bench = msgspec.structs.replace(bench.bench, seed=6)
        with pytest.raises(ModelError, match="did not give the same cache"):
            bench.reclaim()


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_the_checksum_sees_one_bit_of_one_row(dtype):
    bench = msgspec.structs.replace(with_arms("sdpa"), dtype=dtype)
    with standing(bench) as stands:
        before = cache_sums(stands.cache)
        row = stands.cache.views[1].v[1, 0, 7].view(torch.int8)
        row[0] ^= 1
        after = cache_sums(stands.cache)
        assert (before != after).nonzero().tolist() == [[3]]


def test_a_prefilled_cache_comes_from_the_text_and_is_the_same_in_every_process():
    bench = msgspec.structs.replace(with_arms("sdpa", "zero_cost"), fill=Fill.PREFILLED)
    with standing(bench) as first, standing(bench) as second:
        assert first.cache_sha256 == second.cache_sha256
        assert first.token_words.shape == (1024, 5)
    with standing(CPU) as synthetic:
        assert synthetic.cache_sha256 != first.cache_sha256


def test_samples_carry_bandwidth_seed_and_environment():
    result = session("sdpa", "zero_cost")
    samples = result.cells[0].samples
    assert samples.bandwidth_gb_s == result.bandwidth.gb_s > 0
    assert samples.seed == cell(with_arms("sdpa", "zero_cost")).schedule.seed
    assert samples.environment["fill"] == "synthetic"
    assert samples.environment["threads"] == torch.get_num_threads()


def test_a_session_without_probes_says_so_and_has_all_else(monkeypatch):
    class Spares(Muted):
        def ask(self, kept):
            return msgspec.structs.replace(super().ask(kept), probe=False)

    bench = with_arms("sdpa", "zero_cost", bench=msgspec.structs.replace(CPU, model="embedded"))
    found = run_session(
        SessionTask(bench=bench, cells=(cell(bench),), session=3, steps=STEPS), Spares()
    )
    assert not found.probed
    assert not found.influence
    assert not found.replays
    assert not found.surprises
    assert set(found.cells[0].checks) == {"sdpa", "zero_cost"}
    assert "probes" not in found.phases_s


def test_kernels_that_should_be_told_and_are_not_are_remarked_on_with_the_reason(monkeypatch):
    silent = session("sdpa", "zero_cost").cells[0].samples
    monkeypatch.setattr(BenchArm, "unnamed", lambda arm: f"no driver for {arm.method.name}")
    samples = session("sdpa", "zero_cost").cells[0].samples
    assert samples.kernels == {}
    said = samples.environment["kernels_not_exposed"]
    assert set(said.split("; ")) == {
        "sdpa: no driver for sdpa", "zero_cost: no driver for zero_cost",
    }  # fmt: skip
    assert "kernels_not_exposed" not in silent.environment


def test_the_pilot_says_which_arms_run_and_why_others_do_not():
    with standing(with_arms("sdpa")) as bench:
        trial = Trial(bench, Mode.EAGER, Muted(), World(bench.device).settle())
        assert trial.examine(arm("sdpa")).failure is None
        assert trial.examine(arm("Transposed")).failure.type == "BrokenArm"
        assert trial.examine(arm("sdpa,backend=cudnn")).failure.type == "Unsupported"
        assert math.isfinite(bench.cache.views[0].k.sum())


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("architecture", ["llama", "gemma3", "gpt2"])
def test_the_pilot_tells_exact_arms_from_arms_that_only_say_so(architecture, dtype):
    bench = msgspec.structs.replace(with_arms("sdpa"), dtype=dtype)
    with standing(bench, architecture) as stands:
        trial = Trial(stands, Mode.EAGER, Muted(), World(stands.device).settle())
        for honest in ("sdpa", "sdpa_repeat_kv", "eager_repeat_kv", "Exact"):
            assert trial.examine(arm(honest)).failure is None
        failure = trial.examine(arm("SaysExact")).failure
    assert failure.type == "BrokenArm"
    assert "declares itself exact, but its output differs from attention" in failure.message


def test_an_exact_arm_that_is_wrong_in_its_last_layer_is_seen_and_leaves_the_cache_whole():
    with standing(with_arms("sdpa")) as bench:
        before = cache_sums(bench.cache)
        bench.reclaim = lambda: None
        failure = (
            Trial(bench, Mode.EAGER, Muted(), World(bench.device).settle())
            .examine(arm("ForgetsNew"))
            .failure
        )
        assert "layer 2" in failure.message
        assert torch.equal(cache_sums(bench.cache), before)


@pytest.mark.filterwarnings("ignore:Warning only once for all operators")
def test_an_arm_that_registers_unseen_while_it_is_tried_is_named_by_the_pilot():
    talk = Muted()
    with standing(with_arms("sdpa", "Registers")) as bench:
        trial = Trial(bench, Mode.EAGER, talk, World(bench.device).settle())
        assert trial.examine(arm("sdpa")).failure is None
        try:
            with pytest.raises(SessionLost, match="cosh"):
                trial.examine(arm("Registers"))
        finally:
            for module in Registers.modules:
                module.reset()
            Registers.modules.clear()
    assert talk.marks[-1].arm == "Registers"


def test_the_pilot_names_what_an_exact_arm_launches_in_a_step_that_is_not_timed():
    with standing(with_arms("sdpa")) as bench:
        trial = Trial(bench, Mode.EAGER, Muted(), World(bench.device).settle())
        exact = {spec: trial.examine(arm(spec)) for spec in ("sdpa", "eager_repeat_kv")}
        other = trial.examine(arm("zero_cost"))
        assert not bench.cache.views[0].k[:, :, bench.bench.context :].any()
    layers = len(full_attention_shapes(bench.surveyed))
    fused = "aten::_scaled_dot_product_flash_attention_for_cpu"
    assert exact["sdpa"].launched[fused] == layers
    assert fused not in exact["eager_repeat_kv"].launched
    assert exact["eager_repeat_kv"].launched["aten::bmm"] == 2 * layers
    assert {found.unnamed for found in exact.values()} == {""}
    assert (other.launched, other.unnamed) == ({}, "")


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_looking_at_a_step_spoils_no_compiler_for_the_steps_after_it():
    with standing(with_arms("sdpa")) as bench:
        trial = Trial(bench, Mode.EAGER, Muted(), World(bench.device).settle())
        found = [trial.examine(arm("flex,impl=torch")) for _ in range(2)]
    assert [each.failure for each in found] == [None, None]
    assert found[0].launched == found[1].launched
    assert found[0].launched["aten::_safe_softmax"] > 0


def test_an_arm_whose_step_cannot_be_named_is_sound_all_the_same(monkeypatch):
    def silent(*_: object) -> dict[str, int]:
        raise KeyError("nobody may look at this arm")

    monkeypatch.setattr("attnbench.measure.launched._operators", silent)
    with standing(with_arms("sdpa")) as bench:
        found = Trial(bench, Mode.EAGER, Muted(), World(bench.device).settle()).examine(arm("sdpa"))
    assert found.failure is None
    assert found.launched == {}
    assert "nobody may look at this arm" in found.unnamed


def test_an_approximate_arm_may_differ_from_attention():
    with standing(with_arms("sdpa")) as bench:
        trial = Trial(bench, Mode.EAGER, Muted(), World(bench.device).settle())
        assert trial.examine(arm("uniform_mean")).failure is None


@pytest.mark.parametrize(("layers", "looked_at"), [(1, [0]), (2, [0, 1]), (16, [0, 8, 15])])
def test_exactness_is_looked_at_in_the_first_a_middle_and_the_last_layer(layers, looked_at):
    assert sampled(layers) == looked_at


def test_the_pilot_names_the_fastest_configuration_and_keeps_the_times_of_all():
    with standing(with_arms("Tuned")) as bench:
        found = Trial(bench, Mode.EAGER, Muted(), World(bench.device).settle()).examine(
            arm("Tuned")
        )
    assert [timed.launch["splits"] for timed in found.launches] == [1, 40]
    assert [refused.launch["splits"] for refused in found.refused] == [7]
    quickest = min(found.launches, key=lambda timed: timed.median_us)
    assert found.fastest == quickest.launch
    assert found.failure is None


def test_arms_are_tried_in_the_mode_that_is_nearest_to_an_engines():
    def tried(*modes):
        return tried_mode([(Scope.STEP, mode) for mode in modes])

    assert tried(Mode.EAGER) is Mode.EAGER
    assert tried(Mode.EAGER, Mode.GRAPH) is Mode.GRAPH
    assert tried(Mode.GRAPH, Mode.COMPILED, Mode.EAGER) is Mode.COMPILED


@pytest.mark.parametrize(
    ("scopes", "tuned"),
    [
        ((Scope.STEP,), Scope.STEP),
        ((Scope.ATTENTION,), Scope.ATTENTION),
        ((Scope.STEP, Scope.ATTENTION), Scope.ATTENTION),
    ],
)
def test_configurations_are_compared_where_they_are_used(scopes, tuned, monkeypatch):
    timed = []

    class Noting(BenchArm):
        def __init__(self, bench, method, launch, scope, mode):
            super().__init__(bench, method, launch, scope, mode)
            self._where = scope

        def step(self):
            timed.append(self._where)
            return super().step()

    monkeypatch.setattr("attnbench.measure.pilot.BenchArm", Noting)
    bench = with_arms("Tuned", "sdpa")
    found = tuned_scope([(scope, Mode.EAGER) for scope in scopes])
    assert found is tuned
    with standing(bench) as stands:
        Trial(stands, Mode.EAGER, Muted(), World(stands.device).settle(), scope=found).examine(
            arm("Tuned")
        )
    assert set(timed[-TRIAL_STEPS:]) == {tuned}
    assert timed.count(tuned) >= 2 * TRIAL_STEPS
