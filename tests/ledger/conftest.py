from __future__ import annotations

from pathlib import Path

import pytest

from attnbench.ledger import Kind, Ledger


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    """A ledger that does not exist yet."""
    return Ledger(tmp_path / "ledger" / "ledger.jsonl")


@pytest.fixture
def three(ledger: Ledger) -> Ledger:
    """A ledger of three records with text outside ASCII."""
    for i in range(3):
        ledger.append(Kind.CLAIM, {"number": i, "text": "μs · 注意 · 🙂"})
    return ledger
