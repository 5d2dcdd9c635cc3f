"""Who computes only in the step that is checked shows by what that step takes."""

from __future__ import annotations

import msgspec

from tests.evil.court import CPU, Court

SPEC = "tests.evil.peeks:Peeks"
TWIN = "tests.evil.only_when_watched:CountsCalls"


def test_work_done_in_the_last_step_of_a_visit_alone_is_void():
    # Attention has to take most of a step, as in what is checked for its times.
    found = Court(msgspec.structs.replace(CPU, context=2047)).tries([SPEC, TWIN])
    assert found.reasons == {"sdpa": "", SPEC: "cached", TWIN: ""}
