"""`attnbench protocol` and `attnbench run` as a user types them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from attnbench.errors import WorkerFailed
from attnbench.ledger import Kind, Ledger, verify
from attnbench.measure import promised
from attnbench.protocol.claim_log import import_claims
from tests.measure.test_promised import FAST, QUICK, Killed, Workers
from tests.protocol.claims import CLAIMS
from tests.protocol.texts import SPEED, changed

TEXT = changed(SPEED, QUICK)
HEAVY = ("torch", "numpy", "scipy", "matplotlib", "transformers")
EACH_COMMAND = """
import sys
from attnbench.cli.main import main
for command in (["list"], ["check", "p.toml"], ["register", "p.toml"], ["show", "faster"]):
    sys.argv = ["attnbench", "protocol", *command]
    try:
        main()
    except SystemExit as left:
        assert left.code == 0, command
print([name for name in {heavy} if name in sys.modules], file=sys.stderr)
"""


class Place:
    """A folder with a protocol file and a ledger."""

    def __init__(self, folder: Path) -> None:
        self.ledger = Ledger(folder / "ledger.jsonl")
        self.file = folder / "protocols" / "faster.toml"
        self.file.parent.mkdir()
        self.file.write_text(TEXT)

    def kinds(self) -> list[Kind]:
        return [record.kind for record in self.ledger.records()]


@pytest.fixture
def place(tmp_path, monkeypatch) -> Place:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ATTNBENCH_LEDGER", str(tmp_path / "ledger.jsonl"))
    return Place(tmp_path)


@pytest.fixture
def workers(monkeypatch) -> Workers:
    """Workers that answer at once, for `attnbench run` in this process."""
    fakes = Workers(FAST)
    run_of = promised.PromisedRun
    monkeypatch.setattr(
        promised, "PromisedRun", lambda *of, **how: run_of(*of, **how | {"run": fakes})
    )
    return fakes


def test_list_check_register_and_show_import_nothing_heavy(tmp_path):
    (tmp_path / "p.toml").write_text(TEXT)
    done = subprocess.run(
        [sys.executable, "-c", EACH_COMMAND.replace("{heavy}", repr(HEAVY))],
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": ":".join(sys.path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr.splitlines()[-1] == "[]"
    assert "version 1 of faster" in done.stdout


def test_check_says_in_words_what_decides_and_lists_all_problems(attnbench, place):
    good = attnbench("protocol", "check", str(place.file))
    assert good.code == 0
    for said in ("faster: INT8 is faster", "is at least 1.4.", "if it fails  It is not faster."):
        assert said in good.out
    place.file.write_text(changed(TEXT, ("titl", "tit"), ("bound = 1.4", 'bound = "x"')))
    bad = attnbench("protocol", "check", str(place.file))
    assert bad.code == 2
    assert bad.err.splitlines()[:4] == [
        f"error: {place.file} has 3 problems",
        "  tite: nobody knows this key; did you mean title?",
        "  title: is missing",
        "  claim.bound: expected a number, got text",
    ]


def test_register_says_what_it_did_and_list_where_things_stand(attnbench, place):
    def standing():
        (row,) = json.loads(attnbench("protocol", "list", "--json").out)
        return row["standing"], row["version"]

    assert standing() == ("not registered", None)
    assert (
        "registered as version 1 of faster"
        in attnbench("protocol", "register", str(place.file)).out
    )
    again = attnbench("protocol", "register", str(place.file)).out
    assert "already, as version 1" in again
    assert place.kinds() == [Kind.REGISTRATION]
    assert standing() == ("registered", 1)
    place.file.write_text(TEXT + "# changed\n")
    assert standing() == ("changed", 1)
    said = json.loads(attnbench("protocol", "register", str(place.file), "--json").out)
    assert (said[0]["version"], said[0]["new"]) == (2, True)
    place.file.unlink()
    assert standing() == ("registered", 2)
    place.file.write_text("id = 3")
    (place.file.parent / "claims.toml").write_text('system = "x"\n[[claim]]\nkey = "X-01"\n')
    assert {row["standing"] for row in json.loads(attnbench("protocol", "list", "--json").out)} == {
        "6 problems",
        "registered",
    }


def test_new_writes_an_example_that_passes_and_overwrites_nothing(attnbench, place):
    assert attnbench("protocol", "new", "mine").code == 0
    assert attnbench("protocol", "check", "protocols/mine.toml").code == 0
    assert attnbench("protocol", "new", "mine").code == 2
    assert attnbench("protocol", "new", "../mine").code == 2
    said = json.loads(attnbench("protocol", "new", "yours", "--json").out)
    assert said == {"id": "yours", "file": "protocols/yours.toml"}


@pytest.mark.usefixtures("workers")
def test_only_what_is_registered_runs_and_ends_with_the_code_of_its_claim(attnbench, place):
    refused = attnbench("run", "faster")
    assert refused.code == 2
    assert "is not registered, and a promise comes before its run" in refused.err
    assert not place.ledger.path.exists()
    attnbench("protocol", "register", str(place.file))
    done = attnbench("run", "faster")
    assert done.code == 0, done.err
    for said in (
        "protocol faster, version 1, registered as",
        "verdict: SUPPORTED (bound-held)",
        "prospective: registered before its first session",
        "sessions of this run: 6 opened: 6 closed",
        "to publish: It is faster.",
    ):
        assert said in done.out
    assert verify(place.ledger.path).is_sound
    shown = attnbench("protocol", "show", "faster").out
    assert "In all: 1 runs, sessions 6 opened, 6 closed, 0 failed" in shown
    assert "prospective" in shown
    assert "SUPPORTED" in attnbench("ledger", "log", "--kind", "claim").out


@pytest.mark.usefixtures("workers")
def test_a_changed_file_runs_only_as_exploratory_and_the_table_says_it(attnbench, place):
    attnbench("protocol", "register", str(place.file))
    place.file.write_text(changed(TEXT, ("bound = 1.4", "bound = 2.5")))
    assert "not what was registered as version 1" in attnbench("run", str(place.file)).err
    done = attnbench("run", str(place.file), "--exploratory")
    assert done.code == 10
    assert "EXPLORATORY: protocol faster was not registered as it ran" in done.out
    assert "to publish: Exploratory, promised by nobody beforehand. It is not faster." in done.out


def test_a_run_that_stopped_says_how_it_goes_on_and_goes_on(attnbench, place, workers):
    attnbench("protocol", "register", str(place.file))
    workers.faults[1] = WorkerFailed("it died")
    stopped = attnbench("run", "faster")
    assert stopped.code == 1
    assert "go on with `attnbench run --resume faster`" in stopped.err
    del workers.faults[1]
    workers.faults[2] = Killed()
    with pytest.raises(Killed):
        attnbench("run", "--resume", "faster")
    del workers.faults[2]
    done = attnbench("run", "--resume", "faster", "--json")
    assert done.code == 0, done.err
    (found,) = json.loads(done.out)
    assert found["sessions"] == {
        "opened": 8, "closed": 6, "failed": 1, "aborted": 0, "abandoned": 1,
    }  # fmt: skip
    assert (found["verdict"]["claim"], found["timing"]) == ("SUPPORTED", "prospective")
    nothing = attnbench("run", "--resume", "faster")
    assert (nothing.code, nothing.out) == (2, "")
    assert "nothing to go on with" in nothing.err


def test_a_run_that_stopped_stays_counted_when_another_one_begins(attnbench, place, workers):
    attnbench("protocol", "register", str(place.file))
    workers.faults[0] = KeyboardInterrupt()
    assert attnbench("run", "faster").code == 130
    del workers.faults[0]
    done = attnbench("run", "faster")
    assert "stopped without a verdict; its sessions stay counted" in done.err
    assert "of this protocol: 8 opened: 7 closed, 1 aborted" in done.out


def test_a_plan_shows_what_decides_and_what_runs_and_writes_nothing(attnbench, place):
    shown = attnbench("run", "--plan", str(place.file))
    assert shown.code == 0
    assert "must be at least 1.1, or the run says nothing" in " ".join(shown.out.split())
    assert "int8_kv,impl=torch" in shown.out
    (plan,) = json.loads(attnbench("run", "--plan", str(place.file), "--json").out)
    assert plan["cells"][0]["context"] == 1024
    assert not place.ledger.path.exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("run", "fastr"), "there is no protocol 'fastr'"),
        (("run", "no_such.toml"), "no_such.toml cannot be read"),
        (("protocol", "show", "fastr"), "there are faster"),
        (("protocol", "register", "no_such.toml"), "no_such.toml cannot be read"),
        (("run",), "PROTOCOL"),
    ],
)
def test_what_is_not_there_is_a_usage_error(attnbench, place, arguments, said):
    done = attnbench(*arguments)
    assert (done.code, done.out) == (2, "")
    assert said in done.err


BYTES_FOR_A_TIME = changed(
    TEXT,
    ("[claim]", '[claim]\nkey = "DCR-08"\nquantity = "kv-bytes"'),
    ('direction = "at-least"\nbound = 1.4', 'direction = "about"\nbound = 1.0\ntolerance = 0.05'),
    ('reach = "this-model"', 'reach = "universal"'),
)


@pytest.mark.parametrize("command", ["check", "register"])
def test_an_imported_claim_cannot_be_decided_by_another_quantity(attnbench, place, command):
    place.file.write_text(BYTES_FOR_A_TIME)
    unknown = attnbench("protocol", command, str(place.file))
    assert (unknown.code, "no import stands" in unknown.err) == (2, True)
    import_claims(place.ledger, [CLAIMS["DCR-08"]])
    refused = attnbench("protocol", command, str(place.file))
    assert refused.code == 2
    for said in ("quantity is 'speed-up' there", "arm is 'sdpa'", "context of cell 1 is 32000"):
        assert said in refused.err
    assert place.kinds() == [Kind.CLAIM]
