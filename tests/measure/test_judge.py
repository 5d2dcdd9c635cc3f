"""The process that judges is not changed by the methods whose modules it imports."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from attnbench.errors import Exit, JudgeChanged, LedgerError
from attnbench.ledger import Kind, Ledger
from attnbench.measure import again
from attnbench.measure.appraising import Appraiser, QualityRequest, plan_quality
from attnbench.measure.conductor import Conductor, Sweeper
from attnbench.measure.judge import Judge, place_of
from attnbench.measure.promised import PromisedRun
from attnbench.measure.tasks import ArmFailure
from attnbench.measure.verdicts import arm_results
from attnbench.protocol import integrity
from attnbench.protocol.reading import read
from attnbench.protocol.registration import promise_of
from tests.measure.fake_workers import FakeWorkers, NoteTaker
from tests.measure.planned import INT8, plan
from tests.protocol.texts import SPEED

HONEST = "from attnbench.methods.zero_cost import ZeroCost as Mine\n"
BRIBES = "import attnbench.protocol.integrity as i\ni.ERROR_BOUND['float32'] = 1e9\n"
REPLACES = "import attnbench.measure.verdicts as v\nv.misconduct = lambda conduct: None\n"
PATCHED = ArmFailure(type="BrokenArm", message="why", hint="", during="import", reason="patched")


@pytest.fixture
def file(tmp_path):
    """Write a method's file; its class."""

    def written(name: str, *lines: str) -> str:
        (tmp_path / f"{name}.py").write_text(HONEST + "".join(lines))
        return f"{tmp_path / name}.py:Mine"

    return written


@pytest.fixture(autouse=True)
def bounds():
    yield
    assert integrity.ERROR_BOUND["float32"] == 5e-5


def test_a_file_that_changes_what_judges_is_named_and_what_it_changed_is_put_back(file):
    judge = Judge()
    honest, bribes = file("honest"), file("bribes", BRIBES)
    why = judge.tried([honest, bribes, file("replaces", REPLACES)])
    assert [Path(place).stem for place in why] == ["bribes", "replaces"]
    found = why[place_of(bribes)]
    assert (found.reason, found.during) == ("patched", "import")
    assert found.message.endswith(".ERROR_BOUND holds")  # under the first name it was found by
    judge.require_unchanged()


def test_a_file_that_raises_after_its_change_leaves_no_change(file):
    with pytest.raises(Exception, match="fails while it is loaded"):
        Judge().tried([file("raises", BRIBES, "raise ValueError('late')\n")])


def test_what_changes_later_is_nobodys_and_is_refused():
    judge = Judge()
    integrity.ERROR_BOUND["float32"] = 1e9
    with pytest.raises(JudgeChanged, match=r"\.ERROR_BOUND") as caught:
        judge.require_unchanged()
    assert caught.value.exit_code is Exit.VOID
    assert caught.value.reason == "patched"
    judge.require_unchanged()


def test_all_methods_of_a_file_share_its_place():
    assert place_of("a/b.py:One,size=3") == place_of("a/b.py:Two") == "a/b.py"
    assert place_of("int8_kv,group=64") == "int8_kv"


def test_an_arm_whose_import_changed_the_judge_is_set_up_nowhere_and_void(tmp_path):
    workers, ledger = FakeWorkers(), Ledger(tmp_path / "ledger.jsonl")
    left_out = {place_of(INT8.spec): PATCHED}
    Sweeper((plan(),), ledger, NoteTaker(), run=workers, left_out=left_out).conduct()
    assert workers.tasks["pilot"].bench.left_out == {INT8.label: PATCHED}
    assert INT8.label not in [arm.label for arm in workers.tasks["memory"].bench.arms]


def refuses() -> None:
    raise JudgeChanged("it is not what it was")


def test_nothing_is_judged_or_recorded_once_the_judge_changed(tmp_path):
    ledger, workers = Ledger(tmp_path / "ledger.jsonl"), FakeWorkers()
    quality = plan_quality(QualityRequest(model="embedded", device="cpu", methods=("int8_kv",)))
    source = read(SPEED.encode(), "speed")
    promise = promise_of([], source, exploratory=True)
    runs = (
        Appraiser(quality, ledger, NoteTaker(), run=workers, unchanged=refuses).appraise,
        PromisedRun(source, promise, ledger, NoteTaker(), run=workers, unchanged=refuses).conclude,
    )
    for run in runs:
        with pytest.raises(JudgeChanged):
            run()
    recorded = list(ledger.records()) if ledger.path.exists() else []
    assert not [each for each in recorded if each.kind in (Kind.RESULT, Kind.CLAIM)]


@pytest.fixture
def told(tmp_path):
    """A ledger with a run whose results were recorded, after `change`; the run."""

    def run(**change: object) -> tuple[Path, str]:
        ledger = Ledger(tmp_path / "ledger.jsonl")
        found = Conductor(plan(), ledger, NoteTaker(), run=FakeWorkers()).conduct()
        for result in arm_results(found):
            body = {**msgspec.to_builtins(result), **(change if result.arm == INT8.label else {})}
            ledger.append(Kind.RESULT, body, cites=found.cites)
        return ledger.path, found.run

    return run


def test_results_that_follow_from_their_samples_are_the_same_in_a_process_of_its_own(told):
    again.require_same(*told())


def test_a_result_that_does_not_is_named(told):
    path, run = told(ratio=0.5)
    assert again.differing(path, run) == [f"run {run}, {INT8.label}: ratio"]
    assert again.differing(path, "another run") == []


def test_what_a_fresh_process_says_ends_the_run(told, monkeypatch):
    monkeypatch.setattr(again, "COMMAND", ("sh", "-c", """echo '["a","b","c","d"]'"""))
    with pytest.raises(LedgerError, match="a; b; c and 1 more"):
        again.require_same(Path("ledger"), "run")
    monkeypatch.setattr(again, "COMMAND", ("sh", "-c", "echo no such module >&2; exit 1"))
    with pytest.raises(LedgerError, match="built again: no such module"):
        again.require_same(Path("ledger"), "run")
