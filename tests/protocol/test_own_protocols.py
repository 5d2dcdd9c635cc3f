"""The project's own protocol files can be registered as they are."""

from __future__ import annotations

from pathlib import Path

import pytest

from attnbench.ledger import Ledger
from attnbench.protocol.claim_log import import_claims
from attnbench.protocol.imported_rule import imported_of
from attnbench.protocol.reading import is_protocol, read, read_file
from tests.protocol.claims import CLAIMS

ROOT = Path(__file__).parents[2]
FILES = [path for path in sorted((ROOT / "protocols").rglob("*.toml")) if is_protocol(path)]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_protocol_file_of_the_project_is_sound_and_called_as_its_file(path):
    assert read_file(path).file.id == path.stem


def test_there_are_protocols():
    assert FILES


def test_a_protocol_about_an_imported_claim_has_its_rule_and_its_words(tmp_path):
    ledger = Ledger(tmp_path / "ledger.jsonl")
    import_claims(ledger, list(CLAIMS.values()))
    keyed = [source for path in FILES if (source := read_file(path)).file.claim.key]
    assert keyed
    for source in keyed:
        imported = imported_of(ledger.records(), source.file)
        assert imported.body["claim"] == source.file.claim.statement


def test_the_example_of_the_documentation_is_one():
    page = (ROOT / "docs" / "protocols.md").read_text()
    example = page.split("```toml\n")[1].split("```")[0]
    assert read(example.encode(), "the example").file.id == "int8-kv-on-a-cpu"
