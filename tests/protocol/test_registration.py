"""A promise is its file's bytes: registered once, changed into a new version, kept or not run."""

from __future__ import annotations

import pytest

from attnbench.errors import UsageError
from attnbench.ledger import Kind, Ledger, Reason, retract
from attnbench.protocol.registration import promise_of, register, registered_source, versions_of
from tests.protocol.claims import import_claim
from tests.protocol.texts import SPEED, source_of

FIRST = source_of()
CHANGED = source_of(SPEED, ("bound = 1.4", "bound = 1.5"))
OTHER = source_of(SPEED, ('id = "faster"', 'id = "other"'), ("[claim]", '[claim]\nkey = "DCR-18"'))


@pytest.fixture
def ledger(tmp_path):
    return Ledger(tmp_path / "ledger.jsonl")


def records(ledger):
    return list(ledger.records()) if ledger.path.exists() else []


def test_a_registration_holds_the_whole_text_and_its_hash(ledger):
    done = register(ledger, FIRST)
    (record,) = records(ledger)
    assert (done.record.id, done.is_new, done.current.id) == (record.id, True, record.id)
    assert record.kind is Kind.REGISTRATION
    assert record.body == {
        "protocol": "faster",
        "title": "INT8 is faster",
        "file_sha256": FIRST.sha256,
        "text": FIRST.text,
        "version": 1,
        "parent": None,
        "claim": "int8_kv is at least 1.4 times faster",
    }


def test_the_same_bytes_are_registered_once(ledger):
    first = register(ledger, FIRST)
    again = register(ledger, FIRST)
    assert not again.is_new
    assert again.record.id == first.record.id
    assert len(records(ledger)) == 1


def test_a_changed_file_is_a_new_version_that_names_its_parent(ledger):
    first, second = register(ledger, FIRST), register(ledger, CHANGED)
    assert second.record.body["version"] == 2
    assert second.record.body["parent"] == first.record.id
    back = register(ledger, FIRST)
    assert (back.is_new, back.record.id, back.current.id) == (
        False,
        first.record.id,
        second.record.id,
    )


def test_another_protocol_has_versions_of_its_own_and_is_named_by_its_key(ledger):
    import_claim(ledger, "DCR-18")
    register(ledger, FIRST)
    other = register(ledger, OTHER).record.body
    assert (other["version"], other["parent"], other["claim"]) == (1, None, "DCR-18")


def test_what_was_retracted_is_no_promise_and_its_number_is_not_used_again(ledger):
    first = register(ledger, FIRST)
    retract(ledger, first.record.id, Reason.MISWORDED, "the bound was another one")
    assert versions_of(records(ledger), "faster") == []
    with pytest.raises(UsageError, match="is not registered"):
        promise_of(records(ledger), FIRST, exploratory=False)
    again = register(ledger, FIRST)
    assert (again.is_new, again.record.body["version"], again.record.body["parent"]) == (
        True,
        2,
        None,
    )


def test_only_the_bytes_of_the_last_version_are_promised(ledger):
    register(ledger, FIRST)
    second = register(ledger, CHANGED)
    kept = promise_of(records(ledger), CHANGED, exploratory=False)
    assert (kept.registration, kept.version, kept.exploratory) == (second.record.id, 2, False)
    assert (kept.protocol, kept.file_sha256) == ("faster", CHANGED.sha256)
    with pytest.raises(UsageError, match="not what was registered as version 2") as refusal:
        promise_of(records(ledger), FIRST, exploratory=False)
    assert "--exploratory" in refusal.value.hint


@pytest.mark.parametrize("registered", [True, False])
def test_an_exploratory_run_is_promised_by_nothing_whatever_is_registered(ledger, registered):
    if registered:
        register(ledger, FIRST)
    loose = promise_of(records(ledger), FIRST, exploratory=True)
    assert (loose.registration, loose.version, loose.exploratory) == ("", 0, True)


def test_a_registered_protocol_is_found_by_its_id_with_its_very_text(ledger):
    register(ledger, FIRST)
    register(ledger, CHANGED)
    found = registered_source(records(ledger), "faster")
    assert (found.text, found.file.claim.bound) == (CHANGED.text, 1.5)
    with pytest.raises(UsageError, match="did you mean faster"):
        registered_source(records(ledger), "fastr")
