"""`attnbench decode` tells cheats from their honest twin, through its own workers and ledger."""

from __future__ import annotations

import json

from attnbench.ledger import verify
from tests.cli.test_decode_command import HERE, Place, measured

EVIL = HERE / "evil"
CHEATS = {"constant": "constant.py:Constant", "hides_its_time": "patched.py:HidesItsTime",
          "dense_called_sparse": "false_witness.py:DenseCalledSparse",
          "bribed_at_import": "at_import.py:BribedAtImport"}  # fmt: skip
TWIN = {"dense_says_dense": "false_witness.py:DenseSaysDense"}
REASONS = {"constant": "wrong-output", "hides_its_time": "patched",
           "dense_called_sparse": "false-witness", "bribed_at_import": "patched"}  # fmt: skip
ARGUMENTS = ("--model", "embedded", "--ctx", "64", "--scope", "attention", "--protocol", "quick",
             "--no-quality", "--json")  # fmt: skip


def test_the_command_voids_each_cheat_for_its_reason_and_nobody_else(tmp_path):
    """One run of all five, and its ledger: a run takes long, so that it is made once."""
    place = Place(tmp_path)
    methods = [part for path in (CHEATS | TWIN).values() for part in ("--method", f"{EVIL / path}")]
    done = place.run("decode", *ARGUMENTS, *methods)
    assert done.returncode == 12
    assert verify(place.ledger.path).exit_code == 0
    bodies = {body["arm"]: body for body in json.loads(done.stdout)}
    cheats = {arm: bodies.pop(arm)["verdict"] for arm in CHEATS}
    assert {said["latency"] for said in cheats.values()} == {"VOID"}
    assert {arm: said["latency_reason"] for arm, said in cheats.items()} == REASONS
    assert measured(bodies["dense_says_dense"]) in ("INCONCLUSIVE", "VOID")
    for body in bodies.values():
        measured(body)
