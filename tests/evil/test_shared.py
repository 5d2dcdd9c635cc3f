"""Arms of one file find nothing of each other's: no two of them are ever given the same input."""

from __future__ import annotations

import msgspec
import pytest

from attnbench.measure.workbench import Workbench
from attnbench.protocol.cell import Scope
from tests.evil import shared
from tests.evil.court import BASELINE, BLOCKS, CPU, Court

HERE = "tests.evil.shared:"
CHEATS = [f"{HERE}TakesFromOthers,tag={tag}" for tag in ("one", "other")]
TWINS = [f"{HERE}SharesATable,tag={tag}" for tag in ("one", "other")]
LAYERS = 6
SMALL = msgspec.structs.replace(CPU, context=192)


@pytest.fixture(autouse=True)
def forgotten():
    yield
    for kept in (shared.RESULTS, shared.TAKEN, shared.TABLES):
        kept.clear()


# Of a whole step's inputs there are a hundred thousand: now and then two steps have the same.
@pytest.mark.parametrize(("scope", "most"), [(Scope.ATTENTION, 0), (Scope.STEP, 3 * LAYERS)])
def test_an_arm_is_spared_nothing_by_what_another_one_computed(scope, most):
    found = Court(SMALL, scope).tries([*CHEATS, *TWINS])
    assert len(shared.RESULTS) > 100 * LAYERS
    assert len(shared.TAKEN) <= most
    assert found.reasons == dict.fromkeys((BASELINE, *CHEATS, *TWINS), "")
    assert set(found.visits.values()) == {BLOCKS}


def test_with_inputs_that_stay_it_would_be(monkeypatch):
    monkeypatch.setattr(Workbench, "vary", lambda bench, seed: None)
    Court(SMALL).tries(CHEATS)
    assert len(set(shared.TAKEN)) == 2
