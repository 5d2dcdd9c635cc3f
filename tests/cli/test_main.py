from __future__ import annotations

import json
import subprocess
import sys

import pytest

from attnbench import __version__
from attnbench.cli.main import COMMANDS, Entry
from attnbench.errors import DoesNotFit, LedgerError
from attnbench.ledger import Ledger
from tests.ledger.samples import record_run
from tests.protocol.claims import FOLDER as CLAIMS

HEAVY = ("torch", "numpy", "scipy", "matplotlib", "transformers")
WHAT_IS_IMPORTED = """
import sys
from attnbench.cli.main import main
try:
    main()
finally:
    print([name for name in sys.argv[-1].split(",") if name in sys.modules], file=sys.stderr)
"""


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["--version"], ["ledger", "--help"], ["ledger", "log"], ["ledger", "diff"],
     ["ledger", "verify"]],
)  # fmt: skip
def test_help_and_ledger_import_nothing_heavy(tmp_path, arguments):
    ledger = Ledger(tmp_path / "ledger.jsonl")
    record_run(ledger, "aa")
    script = WHAT_IS_IMPORTED.replace("sys.argv[-1]", repr(",".join(HEAVY)))
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        env={"PATH": "/usr/bin:/bin", "ATTNBENCH_LEDGER": str(ledger.path)}
        | {"PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr.splitlines()[-1] == "[]"
    assert done.stdout


def test_listing_claims_imports_no_library_of_numbers(tmp_path):
    lean = ("torch", "numpy", "scipy", "matplotlib", "transformers")
    script = WHAT_IS_IMPORTED.replace("sys.argv[-1]", repr(",".join(lean)))
    done = subprocess.run(
        [sys.executable, "-c", script, "claims", "list", "--claims", str(CLAIMS)],
        env={"PATH": "/usr/bin:/bin", "ATTNBENCH_LEDGER": str(tmp_path / "ledger.jsonl")}
        | {"PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr.splitlines()[-1] == "[]"
    assert "DCR-18" in done.stdout


def test_the_version_is_printed(attnbench):
    assert attnbench("--version") == (0, f"attnbench {__version__}\n", "")


def test_help_lists_every_command_with_its_short_help(attnbench):
    out = attnbench("--help").out
    for name, entry in COMMANDS.items():
        assert name in out
        assert entry.help.split(";")[0].rstrip(".") in out


@pytest.mark.parametrize(
    ("group", "example"),
    [
        ((), "attnbench decode --plan"),
        (("ledger",), "attnbench ledger log --kind result"),
        (("methods",), "attnbench methods list"),
        (("claims",), "attnbench claims show AE-04"),
    ],
)
def test_help_of_every_group_has_examples(attnbench, group, example):
    out = " ".join(attnbench(*group, "--help").out.split())
    assert "Examples:" in out
    assert example in out


def test_a_command_whose_module_is_missing_fails_only_when_it_is_invoked(attnbench, monkeypatch):
    monkeypatch.setitem(COMMANDS, "later", Entry("attnbench.cli.no_such_module:run", "Not yet."))
    assert "later" in attnbench("--help").out
    outcome = attnbench("later")
    assert outcome.code == 1
    assert "has no `later`" in outcome.err


def test_a_module_that_a_command_needs_is_not_mistaken_for_the_command(attnbench, monkeypatch):
    monkeypatch.setitem(COMMANDS, "needy", Entry("tests.cli.needs_a_missing_module:run", ""))
    with pytest.raises(ModuleNotFoundError, match="no_module_of_this_name"):
        attnbench("needy")


def interrupted() -> None:
    raise KeyboardInterrupt


def too_large(context: int = 1, as_json: bool = False) -> None:
    raise DoesNotFit(f"{context} tokens do not fit", hint="4096 do.")


def broken() -> None:
    raise LedgerError("line 3 was changed")


@pytest.fixture
def sample_commands(monkeypatch):
    for function in (interrupted, too_large, broken):
        target = f"{__name__}:{function.__name__}"
        monkeypatch.setitem(COMMANDS, function.__name__, Entry(target, "A sample."))


@pytest.mark.usefixtures("sample_commands")
def test_an_interrupt_leaves_with_130(attnbench):
    assert attnbench("interrupted").code == 130


@pytest.mark.usefixtures("sample_commands")
def test_an_error_says_what_was_wrong_and_what_to_do_and_leaves_with_its_code(attnbench):
    outcome = attnbench("too_large", "--context", "99")
    assert outcome == (1, "", "error: 99 tokens do not fit\n  4096 do.\n")
    assert attnbench("broken").code == 13


@pytest.mark.usefixtures("sample_commands")
def test_with_json_an_error_is_json_on_standard_output(attnbench):
    outcome = attnbench("ledger", "show", "ab", "--ledger", "/no/such/ledger", "--json")
    assert outcome.code == 1
    assert json.loads(outcome.out).keys() == {"error", "hint"}
    assert outcome.err == ""


def test_an_unknown_command_or_option_is_a_usage_error(attnbench):
    assert attnbench("lodger").code == 2
    assert attnbench("ledger", "log", "--no-such-option").code == 2
