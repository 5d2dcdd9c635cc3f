"""Every cheat ends VOID with a right reason, beside honest methods that do not.

All methods of one way are tried in one session with SDPA, which also shows that none of them harms
the others. What keeps K and V where nobody looks shows in memory too, in `test_hidden.py`; the same
through the command line in `test_command.py`.
"""

from __future__ import annotations

from functools import cache

import msgspec
import pytest
import torch
from _pytest.mark import ParameterSet

from attnbench.measure import growth
from attnbench.protocol.cell import Mode, Scope
from tests.evil.catalogue import CHEATS, HONEST, Cheat, Trace
from tests.evil.court import BASELINE, BLOCKS, CPU, Court, Tried, load

# Where each kind of trick may show first.
REASONS = {
    Trace.OUTPUT: {
        "wrong-output", "output-type", "context-skipped", "precision", "false-witness", "cached",
        "left-running",
    },
    Trace.LATER: {"wrong-output", "left-running", "timers-disagree"},
    Trace.KIND: {"output-type"},
    Trace.WORK: {"cached", "wrong-output"},
    Trace.INPUTS: {"inputs-changed", "cache-changed", "weights-changed", "wrong-output"},
    Trace.PROCESS: {"global-state", "patched", "left-running", "wrong-output"},
    Trace.CLOCK: {"patched", "timers-disagree"},
    Trace.STATE: {"false-witness", "cache-changed"},
    Trace.RARE: {"untimed-work"},
    Trace.WITNESS: {"false-witness", "wrong-output", "context-skipped"},
}  # fmt: skip
# What of the catalogue no check tells from an honest method, and why not: nothing, so far. Ways
# that are known and not in the catalogue are in docs/limits.md.
UNCAUGHT: dict[str, str] = {}

# Seen in a whole step alone: they reach into the model between two calls of attention.
IN_A_STEP = ("SilencesTheProjection", "SkipsTheMlp")
# These leave nothing to measure the others with: the session begins again without them.
ENDS_THE_SESSION = (
    *("SlowSdpaBelow", "SlowKernelsBelow"),
    *("what=burner", "what=burner,when=reset"),
)
# Seen in time alone, so that attention has to take most of it.
IN_TIME = ("a result cached", "cost moved", "self-reported")
# Where many steps are run, and of cheats again and again.
SHORT = msgspec.structs.replace(CPU, context=256, batch=1)
LONG = msgspec.structs.replace(CPU, context=1536)
# On a GPU attention has to last as long as a few launches, so that what is left undone is.
CUDA = msgspec.structs.replace(CPU, device="cuda", context=3072, batch=8)
IN_A_GRAPH = ("InCapture", "ACapture", "InTheGraph")


@pytest.fixture(autouse=True, scope="module")
def loaded():
    """What the libraries set in the environment when they load a model is no method's doing."""
    load(CPU.model, torch.float32, torch.device("cpu"), CPU.seed)


def case_of(cheat: Cheat) -> str:
    """The name of what is tried together with this cheat."""
    if cheat.needs_cuda:
        return GRAPH if cheat.spec.endswith(IN_A_GRAPH) else EAGER
    if cheat.own_process:
        return CHILD
    if cheat.spec.endswith("every=4096"):
        return RAREST
    if cheat.spec.endswith(ENDS_THE_SESSION):
        return AGAIN
    return STEP if cheat.spec.endswith(IN_A_STEP) else cheat.way


def court_of(case: str) -> Court:
    """How the methods of a case are tried."""
    if case in (GRAPH, EAGER):
        return Court(CUDA, mode=Mode.GRAPH if case == GRAPH else Mode.EAGER)
    if case in (UPKEEP, RAREST):
        return Court(SHORT, run_on=growth.STEPS if case == RAREST else 400)
    scope = Scope.STEP if case == STEP else Scope.ATTENTION
    return Court(LONG if case.startswith(IN_TIME) else CPU, scope)


@cache
def tried(case: str) -> Tried:
    """All cheats of a case, and the twins that no case before it has."""
    specs = [spec for spec, home in HOMES.items() if home == case]
    court = court_of(case)
    return court.tries_in_a_child(specs) if case == CHILD else court.tries(specs)


GRAPH, EAGER, CHILD = "a graph on a GPU", "eager on a GPU", "a child process"
UPKEEP = next(cheat.way for cheat in CHEATS if cheat.trace is Trace.RARE)
RAREST = "upkeep in every 4096th step"
STEP, AGAIN = "a whole step", "a session that begins again"
HOMES = {cheat.spec: case_of(cheat) for cheat in CHEATS}
for each in CHEATS:
    HOMES.setdefault(each.twin, case_of(each))


def param(case: str, *values: object) -> ParameterSet:
    marks = [pytest.mark.gpu] if case in (GRAPH, EAGER) else []
    name = str(getattr(values[0], "spec", values[0])).removeprefix("tests.evil.")
    return pytest.param(*values, marks=marks, id=name)


def outcome(case: str) -> Tried:
    if case in (GRAPH, EAGER) and not torch.cuda.is_available():
        pytest.skip("needs a CUDA GPU")
    return tried(case)


@pytest.mark.parametrize("cheat", [param(case_of(c), c) for c in CHEATS if c.spec not in UNCAUGHT])
def test_a_cheat_ends_void_with_a_right_reason(cheat):
    assert outcome(case_of(cheat)).reasons[cheat.spec] in REASONS[cheat.trace]


@pytest.mark.parametrize("twin", [param(HOMES[twin], twin) for twin in HONEST])
def test_its_honest_twin_does_not_and_has_all_its_figures(twin):
    found = outcome(HOMES[twin])
    assert found.reasons[twin] == ""
    assert found.visits[twin] == BLOCKS


@pytest.mark.parametrize("case", [param(case, case) for case in dict.fromkeys(HOMES.values())])
def test_no_cheat_takes_a_figure_or_the_verdict_from_the_baseline_beside_it(case):
    found = outcome(case)
    assert found.reasons[BASELINE] == ""
    assert found.visits[BASELINE] == BLOCKS


def test_what_is_not_caught_is_listed_with_the_reason_why_and_nothing_else_is():
    here = [cheat for cheat in CHEATS if not cheat.needs_cuda]
    unseen = {c.spec for c in here if tried(case_of(c)).reasons[c.spec] not in REASONS[c.trace]}
    assert unseen == set(UNCAUGHT)
