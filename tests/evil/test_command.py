"""`attnbench decode` tells cheats from their honest twin, through its own workers and ledger."""

from __future__ import annotations

import json

import pytest

from attnbench.ledger import Ledger, verify
from tests.cli.test_decode_command import HERE, Place

EVIL = HERE / "evil"
CHEATS = {"constant": "constant.py:Constant", "hides_its_time": "patched.py:HidesItsTime",
          "dense_called_sparse": "false_witness.py:DenseCalledSparse"}  # fmt: skip
TWIN = {"dense_says_dense": "false_witness.py:DenseSaysDense"}
REASONS = {"constant": "wrong-output", "hides_its_time": "patched",
           "dense_called_sparse": "false-witness"}  # fmt: skip
ARGUMENTS = ("--model", "embedded", "--ctx", "64", "--scope", "attention", "--protocol", "quick",
             "--no-quality", "--json")  # fmt: skip


@pytest.fixture(scope="module")
def decoded(tmp_path_factory) -> tuple[int, dict[str, dict], Ledger]:
    """The exit code, the verdicts by arm, and the ledger of one run of all four."""
    place = Place(tmp_path_factory.mktemp("decoded"))
    methods = [part for path in (CHEATS | TWIN).values() for part in ("--method", f"{EVIL / path}")]
    done = place.run("decode", *ARGUMENTS, *methods)
    return (
        done.returncode,
        {body["arm"]: body["verdict"] for body in json.loads(done.stdout)},
        place.ledger,
    )


def test_the_command_ends_with_the_code_of_void_and_a_ledger_that_verifies(decoded):
    code, _, ledger = decoded
    assert code == 12
    assert verify(ledger.path).exit_code == 0


@pytest.mark.parametrize("arm", CHEATS)
def test_a_cheat_is_void_with_its_reason(decoded, arm):
    _, verdicts, _ = decoded
    assert verdicts[arm]["latency"] == "VOID"
    assert verdicts[arm]["latency_reason"] == REASONS[arm]


def test_an_honest_method_and_all_others_are_not(decoded):
    _, verdicts, _ = decoded
    assert verdicts["dense_says_dense"]["latency"] == "INCONCLUSIVE"
    assert {arm for arm, said in verdicts.items() if said["latency"] == "VOID"} == set(CHEATS)
