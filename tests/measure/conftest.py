"""Sessions look at few of torch's operators here: to read what the dispatcher has for each of them
takes longer than most of these tests, and every group of blocks reads all.

That all are read, and that what torch itself registers is told of no arm, is tested in
`test_dispatcher.py` and by the sessions of tests/evil, which read every one.
"""

from __future__ import annotations

from functools import cache

import pytest

from attnbench.measure import settings
from attnbench.measure.dispatcher import all_operators

ONE_IN = 40
REGISTERED_BY_A_TEST = "aten::cosh"


@cache
def some_operators() -> tuple[str, ...]:
    return (*all_operators()[::ONE_IN], REGISTERED_BY_A_TEST)


@pytest.fixture(autouse=True, scope="module")
def few_operators():
    """Of a whole file: to a world that was made before, a name that changes is an arm's doing."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(settings, "all_operators", some_operators)
        yield
