"""The project's own protocol files can be registered as they are."""

from __future__ import annotations

from pathlib import Path

import pytest

from attnbench.protocol.claim_file import read_claims
from attnbench.protocol.reading import is_protocol, read, read_file

ROOT = Path(__file__).parents[2]
FILES = [path for path in sorted((ROOT / "protocols").rglob("*.toml")) if is_protocol(path)]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_protocol_file_of_the_project_is_sound_and_called_as_its_file(path):
    assert read_file(path).file.id == path.stem


def test_there_are_protocols():
    assert FILES


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_protocol_about_an_imported_claim_has_its_rule(path):
    file = read_file(path).file
    if not file.claim.key:
        return
    claims = {claim.key: claim for claim in read_claims(ROOT / "protocols" / "claims")}
    rule = claims[file.claim.key].entry.rule
    assert (rule.direction, rule.bound, rule.tolerance, rule.reach) == (
        file.claim.direction, file.claim.bound, file.claim.tolerance, file.claim.reach,
    )  # fmt: skip
    assert claims[file.claim.key].entry.statement == file.claim.statement


def test_the_example_of_the_documentation_is_one():
    page = (ROOT / "docs" / "protocols.md").read_text()
    example = page.split("```toml\n")[1].split("```")[0]
    assert read(example.encode(), "the example").file.id == "int8-kv-on-a-cpu"
