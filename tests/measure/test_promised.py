"""A protocol from its registration to its verdict, with workers that answer at once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from threading import Lock

import msgspec
import pytest

from attnbench.cli.protocol_views import listed
from attnbench.errors import AttnbenchError, Unsupported, UsageError, WorkerFailed
from attnbench.ledger import Kind, Ledger, Reason, Status, Timing, fold, retract, verify
from attnbench.measure import promised, promised_plan
from attnbench.measure.conclusion import Concluded, run_to_go_on
from attnbench.measure.past import past_sessions
from attnbench.measure.promised import PromisedRun
from attnbench.measure.promised_plan import plans_of, request_of
from attnbench.models.sources import inspect
from attnbench.protocol.claim import ClaimReason, Outcome
from attnbench.protocol.claim_log import standings
from attnbench.protocol.history import counting_run, runs_of
from attnbench.protocol.reading import Source
from attnbench.protocol.registration import promise_of, register
from attnbench.protocol.result import Promise
from attnbench.quality.levels import Level
from attnbench.report.claim_text import claim_lines
from tests.measure.fake_workers import FakeWorkers, NoteTaker
from tests.measure.planned import plan
from tests.protocol.claims import import_claim
from tests.protocol.texts import ORDER, QUALITY, SPEED, source_of

QUICK = ("[publish]", '[schedule]\npreset = "quick"\nsessions = 3\n[publish]')
SOURCE = source_of(SPEED, QUICK)
IDENTITY = inspect("embedded").identity
FAST = {"int8_kv,impl=torch": 500.0, "sink_window,window=64,impl=torch": 800.0, "zero_cost": 400.0}
INT8, SINK = "int8_kv,impl=torch", "sink_window,window=64,impl=torch"
SESSIONS = ["pilot", 0, 1, 2, "memory", "quality"]
TIMED = SESSIONS[:4]
RESULTS = 6  # the baseline pair, the other exact arm, the two of the file, zero_cost
APPENDS = 2 * len(SESSIONS) + RESULTS + 1  # the last is the claim


class Workers(FakeWorkers):
    """Workers that load the very model of the plan."""

    def _session(self, cells, number):
        session = super()._session(cells, number)
        return msgspec.structs.replace(session, model_identity=IDENTITY)


def assert_order(names, expected):
    """In this order, but for memory and quality, which run side by side."""
    assert [name for name in names if name in TIMED] == [n for n in expected if n in TIMED]
    assert sorted(map(str, names)) == sorted(map(str, expected))


class Killed(BaseException):
    """As `kill -9` would end it: nothing that runs afterwards writes a record."""


class Dying(Ledger):
    """A ledger whose process is killed at its n-th append, before or after the line is there."""

    def __init__(self, path: Path, at: int, *, written: bool) -> None:
        super().__init__(path)
        self._left, self._written, self._lock = at, written, Lock()

    def append(self, kind, body, *, cites=()):
        with self._lock:  # of two that run side by side none writes after the death
            self._left -= 1
            if self._left < 0 or (self._left == 0 and not self._written):
                raise Killed
            record = super().append(kind, body, cites=cites)
            if self._left == 0:
                raise Killed
            return record


class Bench:
    """A ledger, and runs of a protocol in it."""

    def __init__(self, folder: Path) -> None:
        self.ledger = Ledger(folder / "ledger.jsonl")
        self.notes = NoteTaker()

    def run(
        self,
        workers: Workers | None = None,
        source: Source = SOURCE,
        *,
        ledger: Ledger | None = None,
        resume: bool = False,
        exploratory: bool = False,
    ) -> Concluded:
        records = self.records()
        promise = promise_of(records, source, exploratory=exploratory)
        past = run_to_go_on(records, promise) if resume else ""
        return PromisedRun(
            source,
            promise,
            ledger or self.ledger,
            self.notes,
            resume=past,
            run=workers or Workers(FAST),
        ).conclude()

    def dies(self, at: int, *, written: bool, workers: FakeWorkers | None = None) -> None:
        with pytest.raises(Killed):
            self.run(workers, ledger=Dying(self.ledger.path, at, written=written))

    def records(self, *kinds: Kind):
        found = list(self.ledger.records()) if self.ledger.path.exists() else []
        return [each for each in found if not kinds or each.kind in kinds]

    def only_claim(self):
        (claim,) = self.records(Kind.CLAIM)
        return claim


@pytest.fixture
def bench(tmp_path) -> Bench:
    return Bench(tmp_path)


@pytest.fixture
def promised_bench(bench) -> Bench:
    register(bench.ledger, SOURCE)
    return bench


def test_what_was_not_registered_does_not_run(bench):
    with pytest.raises(UsageError, match="is not registered"):
        bench.run()
    assert bench.records() == []


def test_a_run_ends_with_a_claim_that_cites_its_promise_and_its_results(promised_bench):
    done = promised_bench.run()
    (registration,) = promised_bench.records(Kind.REGISTRATION)
    results, claim = promised_bench.records(Kind.RESULT), promised_bench.only_claim()
    assert len(results) == RESULTS
    assert claim.cites == (registration.id, *(result.id for result in results))
    assert {result.cites[0] for result in results} == {registration.id}
    assert claim.id == done.claim_record
    body = claim.body
    assert (body["claim"], body["key"]) == ("int8_kv is at least 1.4 times faster", "faster")
    assert (body["protocol"], body["run"]) == (registration.id, done.run)
    assert body["verdict"]["claim"] == "SUPPORTED"
    assert body["verdict"]["claim_reason"] == "bound-held"
    assert body["observed"]["value"] == pytest.approx(2.0, rel=0.01)
    assert len(body["observed"]["intervals"]) == 2
    assert body["observed"]["cell"]["context"] == 1024
    assert (body["text"], body["control"]["found"]) == ("It is faster.", True)
    assert body["sessions"] == dict.fromkeys(("opened", "closed"), 6) | dict.fromkeys(
        ("failed", "aborted", "abandoned"), 0
    )
    assert verify(promised_bench.ledger.path).is_sound


def test_the_verdict_of_the_arm_had_to_clear_the_bound_of_the_claim(promised_bench):
    promised_bench.run(Workers(FAST | {"int8_kv,impl=torch": 800.0}))
    claim = promised_bench.only_claim()
    assert claim.body["verdict"]["claim"] == "FALSIFIED"
    assert claim.body["text"] == "It is not faster."
    of_arm = {r.body["arm"]: r.body for r in promised_bench.records(Kind.RESULT)}
    assert of_arm["int8_kv,impl=torch"]["statistics"]["claim"] == pytest.approx(0.4)
    assert of_arm["int8_kv,impl=torch"]["verdict"]["latency"] == "INCONCLUSIVE"


@pytest.mark.parametrize(
    ("changes", "level"),
    [
        ([], Level.BRIEF),
        ([("bound = 1.4", "bound = 1.4\nkeeps_quality = true")], Level.QUICK),
        ([("[claim]", "quality = false\n[claim]")], None),
    ],
)
def test_a_claim_that_quality_is_kept_has_every_gate_run(changes, level):
    file = source_of(SPEED, *changes).file
    promise = Promise(protocol=file.id, file_sha256="ab" * 32, exploratory=True)
    assert request_of(file, file.cell[0], promise).quality is level


def test_a_control_that_is_not_found_voids_the_run(promised_bench):
    workers = Workers(FAST | {"sink_window,window=64,impl=torch": 1000.0})
    done = promised_bench.run(workers)
    assert done.judgement.verdict.reason is ClaimReason.CONTROL_NOT_FOUND
    assert promised_bench.only_claim().body["verdict"]["claim"] == "VOID"
    assert any("control NOT FOUND" in str(line) for line in claim_lines(done))


def test_a_promise_before_the_sessions_is_prospective(promised_bench):
    done = promised_bench.run()
    assert done.timing is Timing.PROSPECTIVE
    (run,) = runs_of(promised_bench.records(), "faster")
    assert (run.timing, run.version, run.verdict) == (Timing.PROSPECTIVE, 1, "SUPPORTED")


def test_an_exploratory_run_says_so_in_every_record_and_stays_it_when_promised_later(bench):
    done = bench.run(exploratory=True)
    marked = bench.records(Kind.SESSION, Kind.RESULT, Kind.CLAIM)
    assert len(marked) == APPENDS
    assert all(record.body["promise"]["exploratory"] for record in marked)
    claim = bench.only_claim()
    assert claim.body["protocol"] is None
    assert claim.body["text"].startswith("Exploratory, promised by nobody beforehand. ")
    assert done.timing is None
    assert any("EXPLORATORY" in str(line) for line in claim_lines(done))
    register(bench.ledger, SOURCE)
    (run,) = runs_of(bench.records(), "faster")
    assert (run.exploratory, run.timing) == (True, Timing.RETROSPECTIVE)


def test_an_exploratory_verdict_never_hides_a_promised_one(promised_bench):
    slow = Workers({"sink_window,window=64,impl=torch": 800.0, "zero_cost": 400.0})
    promised_bench.run()
    promised_bench.run(slow, exploratory=True)
    first, second = runs_of(promised_bench.records(), "faster")
    assert (first.verdict, second.verdict) == ("SUPPORTED", "FALSIFIED")
    assert counting_run(promised_bench.records(), "faster") == first
    (row,) = listed(promised_bench.records(), [])
    assert row["verdict"] == "SUPPORTED"
    promised_bench.run(slow)
    promised_bench.run()
    (row,) = listed(promised_bench.records(), [])
    assert row["verdict"] == "FALSIFIED"  # until it is retracted


def test_where_nothing_was_promised_the_exploratory_verdict_is_shown_as_one(bench):
    assert counting_run([], "faster") is None
    bench.run(exploratory=True)
    register(bench.ledger, SOURCE)
    (row,) = listed(bench.records(), [])
    assert row["verdict"] == "SUPPORTED (exploratory)"


GATED = source_of(QUALITY)


@pytest.mark.parametrize(("cosine", "verdict"), [(0.995, "SUPPORTED"), (0.97, "FALSIFIED")])
def test_a_claim_about_a_figure_of_the_gates_is_decided_by_them_and_nothing_is_timed(
    bench, cosine, verdict
):
    register(bench.ledger, GATED)
    workers = Workers(cosine={INT8: cosine, SINK: 0.5})
    done = bench.run(workers, GATED)
    assert list(workers.tasks) == ["quality"]
    (registration,) = bench.records(Kind.REGISTRATION)
    results, claim = bench.records(Kind.RESULT), bench.only_claim()
    assert [each.body["arm"] for each in results] == [INT8, SINK, "sdpa,backend=math"]
    assert claim.cites == (registration.id, *(result.id for result in results))
    assert {result.cites[0] for result in results} == {registration.id}
    body = claim.body
    assert (body["quantity"], body["verdict"]["claim"]) == ("cosine", verdict)
    assert body["observed"]["value"] == pytest.approx(cosine)
    assert [each["found"] for each in body["required"]] == [True]
    assert done.timing is Timing.PROSPECTIVE
    assert any("required found: kept-share of int8_kv" in str(it) for it in claim_lines(done))
    assert verify(bench.ledger.path).is_sound


def test_a_run_of_the_gates_that_was_killed_goes_on_without_running_them_again(bench):
    register(bench.ledger, GATED)
    workers = Workers(cosine={INT8: 0.995, SINK: 0.5})
    with pytest.raises(Killed):
        bench.run(workers, GATED, ledger=Dying(bench.ledger.path, 3, written=True))
    again = Workers(cosine={INT8: 0.1})
    done = bench.run(again, GATED, resume=True)
    assert list(again.tasks) == []
    assert done.judgement.verdict.outcome is Outcome.SUPPORTED
    assert len(bench.records(Kind.RESULT)) == 3


KEYED = source_of(SPEED, QUICK, ("[claim]", '[claim]\nkey = "DCR-18"'))


def test_an_imported_claim_of_that_key_is_cited_and_its_statement_is_the_one_that_is_shown(bench):
    imported, other = (import_claim(bench.ledger, key) for key in ("DCR-18", "DCR-17"))
    register(bench.ledger, KEYED)
    bench.run(source=KEYED)
    *_, claim = bench.records(Kind.CLAIM)
    assert imported.id in claim.cites
    assert other.id not in claim.cites
    assert (claim.body["key"], claim.body["rule_record"]) == ("DCR-18", imported.id)
    assert claim.body["claim"] == imported.body["claim"] != KEYED.file.claim.statement
    standing = standings(bench.records())["DCR-18"]
    assert (standing.outcome, standing.said_by.id) == (Outcome.SUPPORTED, claim.id)


def test_an_exploratory_run_decides_no_imported_claim(bench):
    imported = import_claim(bench.ledger, "DCR-18", bound=1.3)
    bench.run(source=KEYED, exploratory=True)
    standing = standings(bench.records())["DCR-18"]
    assert (standing.outcome, standing.said_by.id) == (Outcome.INCONCLUSIVE, imported.id)


@pytest.mark.parametrize(
    ("rule", "decided", "said"),
    [
        ({"bound": 1.3}, {}, "bound is 1.3 there and 1.4 here"),
        ({"direction": "at-most"}, {}, "direction"),
        ({"reach": "universal"}, {}, "reach"),
        ({"gpu": "NVIDIA H100"}, {}, "gpu of cell 1 is 'NVIDIA H100' there and '' here"),
        ({"model": "preset:llama-3.2-1b"}, {}, "model of cell 1"),
        ({}, {"quantity": "kv-bytes"}, "quantity is 'kv-bytes' there and 'speed-up' here"),
        ({}, {"arms": ["sdpa"]}, "arm is 'sdpa' there and 'int8_kv' here"),
        ({}, {"arms": ["int8_kv,bits=4"]}, "arm is"),
        ({}, {"baseline": "sdpa"}, "baseline is 'sdpa' there and 'strongest' here"),
        ({}, {"models": ["preset:a", "b"]}, "model of cell 1 is preset:a or b there"),
        ({}, {"context": 32000}, "context of cell 1 is 32000 there and 1024 here"),
        ({}, {"least_context": 4096}, "context of cell 1 is at least 4096 there and 1024 here"),
        ({}, {"claimed": {"1024": 1.5}}, "claimed, by context, is {'1024': 1.5} there and"),
        ({}, {"batch": 4}, "batch of cell 1"),
        ({}, {"dtype": "bfloat16"}, "dtype of cell 1"),
        ({}, {"device": "cuda"}, "device of cell 1"),
        ({}, {"scope": "attention"}, "scope of cell 1"),
        ({}, {"mode": "graph"}, "mode of cell 1"),
        ({}, {"sessions": 8}, "at least 8 sessions there and"),
        ({}, {"level": 0.99}, "a level of at least 0.99 there and 0.95 here"),
    ],
)
def test_an_imported_claim_is_decided_by_its_own_rule_or_not_at_all(bench, rule, decided, said):
    import_claim(bench.ledger, "DCR-18")
    register(bench.ledger, KEYED)
    import_claim(bench.ledger, "DCR-18", decided=decided, **rule)
    for refused in (
        lambda: bench.run(source=KEYED),
        lambda: register(bench.ledger, source_of(KEYED.text, ("sessions = 3", "sessions = 4"))),
    ):
        with pytest.raises(UsageError, match="by another rule than its import") as error:
            refused()
        assert said in error.value.message
    assert bench.records(Kind.SESSION) == []


@pytest.mark.parametrize(
    ("decided", "said"),
    [(None, "cannot measure yet"), ({"quantity": "step-time", "baseline": ""}, "is about a step")],
)
def test_what_no_protocol_measures_no_protocol_decides(bench, decided, said):
    import_claim(bench.ledger, "DCR-18", decided=decided)
    with pytest.raises(UsageError, match=said):
        register(bench.ledger, KEYED)


def test_a_claim_without_an_import_is_decided_by_no_protocol(bench):
    with pytest.raises(UsageError, match="no import stands"):
        register(bench.ledger, KEYED)


def test_bands_and_levels_of_its_own_decide_no_imported_claim(bench):
    import_claim(bench.ledger, "DCR-18", keeps_quality=True)
    looser = source_of(
        KEYED.text,
        ('reach = "this-model"', 'reach = "this-model"\nkeeps_quality = true'),
        (
            "[control]",
            "[decision]\naa_level = 0.999\n\n[gates.logit-kl]\npass_to = 0.06\n\n[control]",
        ),
    )
    with pytest.raises(UsageError, match="default bands") as error:
        register(bench.ledger, looser)
    assert "aa_level of at most 0.99" in error.value.message


# Before and after the first line; at the pilot; in the middle of a session; between two; before
# the first result, in the middle of them, and before the claim.
@pytest.mark.parametrize("written", [True, False])
@pytest.mark.parametrize("at", [1, 2, 5, 12, 13, 16, APPENDS])
def test_a_run_that_was_killed_goes_on_and_hides_nothing(promised_bench, at, written):
    bench = promised_bench
    bench.dies(at, written=written)
    if (at, written) in ((1, False), (APPENDS, True)):  # nothing was begun, and all was done
        with pytest.raises(UsageError, match=r"began as this one|nothing to go on with"):
            bench.run(resume=True)
        return
    closed = [r.body["session"] for r in bench.records() if r.body.get("phase") == "closed"]
    left = [r.body["session"] for r in bench.records() if r.body.get("phase") == "opened"]
    left = [name for name in left if name not in closed]
    assert len(bench.records()) == 1 + at - (not written)
    assert len(left) <= (2 if len(closed) >= len(TIMED) else 1)
    workers = Workers(FAST)
    done = bench.run(workers, resume=True)
    assert_order(list(workers.tasks), [name for name in SESSIONS if name not in closed])
    assert done.judgement.verdict.outcome is Outcome.SUPPORTED
    assert done.sessions.opened == len(SESSIONS) + len(left)
    assert (done.sessions.closed, done.sessions.abandoned) == (len(SESSIONS), len(left))
    assert len(bench.records(Kind.RESULT)) == RESULTS
    assert len(fold(bench.records()).abandoned) == len(left)
    assert {r.body["run"] for r in bench.records(Kind.SESSION, Kind.CLAIM)} == {done.run}
    cited = {id for result in bench.records(Kind.RESULT) for id in result.cites}
    of_sessions = [r for r in bench.records(Kind.SESSION) if r.id in cited]
    assert_order([r.body["session"] for r in of_sessions], SESSIONS)
    assert {r.body["phase"] for r in of_sessions} == {"closed"}
    assert verify(bench.ledger.path).is_sound


def test_a_run_that_goes_on_measures_what_it_would_have_measured(promised_bench):
    whole = Workers(FAST)
    promised_bench.run(whole)
    promised_bench.dies(6, written=True)
    rest = Workers(FAST)
    promised_bench.run(rest, resume=True)
    assert {name: whole.tasks[name] for name in rest.tasks} == rest.tasks
    assert any("in the ledger already: pilot, 0, 1" in note for note in promised_bench.notes.notes)


def test_every_way_in_which_a_session_ended_is_counted_for_the_protocol(promised_bench):
    bench = promised_bench
    bench.dies(3, written=True)
    with pytest.raises(KeyboardInterrupt):
        bench.run(Workers(FAST, faults={0: KeyboardInterrupt()}))
    with pytest.raises(WorkerFailed):
        bench.run(Workers(FAST, faults={1: WorkerFailed("it died")}))
    bench.run(exploratory=True)
    done = bench.run()
    assert str(done.sessions) == "6 opened: 6 closed"
    ends = "1 failed, 1 aborted, 1 abandoned"
    assert str(done.of_protocol) == f"19 opened: 16 closed, {ends}"
    assert len(runs_of(bench.records(), "faster")) == 5


def test_only_the_last_run_that_has_no_verdict_goes_on(promised_bench):
    bench = promised_bench
    bench.dies(3, written=True)
    with pytest.raises(WorkerFailed):
        bench.run(Workers(FAST, faults={1: WorkerFailed("it died")}))
    first, second = runs_of(bench.records(), "faster")
    assert bench.run(resume=True).run == second.run
    assert bench.run(resume=True).run == first.run
    with pytest.raises(UsageError, match="nothing to go on with"):
        bench.run(resume=True)


def test_a_run_under_another_promise_does_not_go_on(promised_bench):
    bench = promised_bench
    bench.dies(3, written=True)
    with pytest.raises(UsageError, match="has no run that began as this one would"):
        bench.run(exploratory=True, resume=True)
    later = source_of(SPEED, QUICK, ("bound = 1.4", "bound = 1.5"))
    register(bench.ledger, later)
    with pytest.raises(UsageError, match="has no run that began as this one would"):
        bench.run(source=later, resume=True)


def test_a_run_does_not_go_on_with_another_model_of_the_same_name(promised_bench, monkeypatch):
    promised_bench.dies(3, written=True)
    plans = plans_of(SOURCE.file, promise_of(promised_bench.records(), SOURCE, exploratory=False))
    changed = tuple(replace(p, info=replace(p.info, identity="ff" * 32)) for p in plans)
    monkeypatch.setattr(promised, "plans_of", lambda *_: changed)
    with pytest.raises(UsageError, match="another model"):
        promised_bench.run(resume=True)


def test_a_session_that_was_retracted_is_measured_again_and_its_results_said_anew(promised_bench):
    bench = promised_bench
    bench.dies(APPENDS, written=False)
    closed = [r for r in bench.records(Kind.SESSION) if r.body["phase"] == "closed"]
    retract(bench.ledger, closed[2].id, Reason.ENVIRONMENT, "somebody used the machine")
    workers = Workers(FAST)
    bench.run(workers, resume=True)
    assert list(workers.tasks) == [1]
    statuses = fold(bench.records()).statuses
    results = bench.records(Kind.RESULT)
    assert [statuses[r.id] for r in results] == [Status.TAINTED] * RESULTS + [Status.LIVE] * RESULTS
    assert statuses[bench.only_claim().id] is Status.LIVE


def test_what_failed_beside_the_claim_is_told_and_the_claim_judged_all_the_same(promised_bench):
    fault = AttnbenchError("the text is too short")
    done = promised_bench.run(Workers(FAST, faults={"quality": fault}))
    assert done.failed == (fault,)
    assert done.judgement.verdict.outcome is Outcome.SUPPORTED
    assert str(done.sessions) == "6 opened: 5 closed, 1 failed"


def test_several_cells_are_one_run_each_with_its_sessions(bench):
    cell = SPEED[SPEED.index("[[cell]]") : SPEED.index("[control]")]
    both = source_of(
        SPEED,
        QUICK,
        ("[control]", f"{cell.replace('1024', '512')}[control]"),
        ("[publish]", '[decision]\nrule = "every-cell"\n[publish]'),
    )
    register(bench.ledger, both)
    with pytest.raises(Killed):
        bench.run(source=both, ledger=Dying(bench.ledger.path, APPENDS + 2, written=True))
    workers = Workers(FAST)
    done = bench.run(workers, both, resume=True)
    assert_order(list(workers.tasks), SESSIONS[1:])
    assert [c.cell.context for c in done.judgement.cells] == [1024, 512]
    assert str(done.sessions) == "13 opened: 12 closed, 1 abandoned"
    assert len(bench.records(Kind.RESULT)) == 2 * RESULTS
    assert [each["claim"] for each in bench.only_claim().body["cells"]] == ["SUPPORTED"] * 2


def test_a_cell_of_another_gpu_is_refused_before_anything_is_measured(bench, monkeypatch):
    other = source_of(
        SPEED, QUICK, ('device = "cpu"', 'device = "cuda"\ngpu = "NVIDIA H100 80GB HBM3"')
    )
    register(bench.ledger, other)
    monkeypatch.setattr(promised_plan, "plan_decode", lambda asked: plan())
    with pytest.raises(Unsupported, match="is about NVIDIA H100 80GB HBM3, and here is A proc"):
        bench.run(source=other)
    assert bench.records(Kind.SESSION) == []


ORDER_SOURCE = source_of(ORDER)


def test_an_order_effect_is_measured_as_calibrate_does_and_goes_on_too(bench):
    register(bench.ledger, ORDER_SOURCE)
    with pytest.raises(Killed):
        bench.run(source=ORDER_SOURCE, ledger=Dying(bench.ledger.path, 7, written=True))
    done = bench.run(Workers(), ORDER_SOURCE, resume=True)
    (result,) = bench.records(Kind.RESULT)
    assert result.body["calibration"] == "order-effect"
    assert [bias.how for bias in done.order_effect.order_effect] == ["sequential", "blocks"]
    assert done.judgement.verdict.outcome is Outcome.FALSIFIED
    assert bench.only_claim().body["text"] == "There is no such effect."
    assert done.timing is Timing.PROSPECTIVE
    assert str(done.sessions) == "7 opened: 6 closed, 1 abandoned"


def test_of_two_sessions_closed_under_one_name_the_first_counts(promised_bench):
    """Two processes that go on with one run at a time measure some sessions twice."""
    bench = promised_bench
    bench.dies(6, written=True)
    records = bench.records()
    closed = [r for r in records if r.body.get("phase") == "closed"][1]
    bench.ledger.append(Kind.SESSION, closed.body, cites=closed.cites)
    run, cell = closed.body["run"], closed.body["cell"]
    past = past_sessions(bench.ledger, bench.records(), run, cell)
    assert past.cites[1] == closed.id
    assert len(past.cites) == len(past.results) == 3
