from __future__ import annotations

import pytest

from attnbench.report.page.html import Contents, page
from attnbench.report.page.reading import Reading
from tests.report.ledgers import MadeUp, made_up


@pytest.fixture(scope="session")
def made(tmp_path_factory) -> MadeUp:
    """The made-up ledger, which nobody appends to."""
    return made_up(tmp_path_factory.mktemp("made") / "ledger.jsonl")


@pytest.fixture(scope="session")
def html(made) -> str:
    """Its page."""
    return page(Contents(Reading.of(made.ledger)))
