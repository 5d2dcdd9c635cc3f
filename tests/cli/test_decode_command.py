"""`attnbench decode` as a user runs it, on a tiny model, with good and bad input."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from attnbench.cli.common import numbers
from attnbench.ledger import Kind, Ledger, Record, verify
from attnbench.measure import workers
from tests.models.tiny import COMMON, VOCAB, build

HERE = Path(__file__).parents[1]
WINDOW = f"{HERE / 'third_party' / 'my_window.py'}:MyWindow"
BAD = "tests.third_party.bad_decode"
ATTNBENCH = (sys.executable, "-c", "from attnbench.cli.main import main; main()")
# What a machine that is busy with other things may void an honest arm for.
CLOCKS = ("not-warm", "timers-disagree", "aa-control", "probe-doubtful", "below-floor")
LONGEST_S = 300.0  # for a loaded machine; nothing here waits for it when all is well


class Place(NamedTuple):
    """A folder with a model and a ledger, and how to run a decode in it."""

    folder: Path

    @property
    def ledger(self) -> Ledger:
        return Ledger(self.folder / "ledger.jsonl")

    def arguments(self, *more: str) -> list[str]:
        return ["decode", "--model", "model", "--ctx", "64", "--protocol", "quick", *more]

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*ATTNBENCH, *arguments],
            cwd=self.folder,
            env=environment(self.folder),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        with self.start(*arguments) as process:
            out, err = process.communicate(timeout=LONGEST_S)
        return subprocess.CompletedProcess(arguments, process.returncode, out, err)


def environment(folder: Path) -> dict[str, str]:
    """Without a hub, a GPU, or a Triton interpreter; the tests' own methods can be imported."""
    kept = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    return kept | {
        "ATTNBENCH_LEDGER": str(folder / "ledger.jsonl"),
        "CUDA_VISIBLE_DEVICES": "",
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(folder / "hub"),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(HERE.parent),
    }


def make_place(folder: Path) -> Place:
    build("llama", {**COMMON, "head_dim": 64}).save_pretrained(folder / "model")
    words = {f"w{number}": number for number in range(VOCAB)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="w0")
    wrapped.save_pretrained(folder / "model")
    return Place(folder)


@pytest.fixture(scope="module")
def decoded(tmp_path_factory) -> tuple[Place, subprocess.CompletedProcess[str]]:
    """A place where one run has ended well: two methods of others, and one of them fails."""
    place = make_place(tmp_path_factory.mktemp("decoded"))
    methods = ("--method", WINDOW, "--method", f"{BAD}:RaisesLate")
    return place, place.run(*place.arguments(*methods))


@pytest.fixture
def place(tmp_path, monkeypatch) -> Place:
    """A place without a run, for commands in this process."""
    monkeypatch.chdir(tmp_path)
    for name, value in environment(tmp_path).items():
        monkeypatch.setenv(name, value)
    return Place(tmp_path)


def results(records: list[Record]) -> dict[str, dict]:
    return {r.body["arm"]: dict(r.body) for r in records if r.kind == "result"}


def phases(ledger: Ledger) -> list[str]:
    return [r.body["phase"] for r in ledger.records() if r.kind == "session"]


def measured(body: dict) -> str:
    """The verdict on latency; where it is VOID, a busy machine's clocks are the only reason."""
    said = body["verdict"]
    assert said["latency"] != "VOID" or said["latency_reason"] in CLOCKS
    return said["latency"]


def test_a_run_ends_with_the_code_of_its_gravest_verdict_and_prints_its_table(decoded):
    _, done = decoded
    assert done.returncode == 12  # of the arm that failed; the others are merely inconclusive
    for said in ("model · 64 tokens · batch 1 · float32", "ms/step", "my_window", "NOT_EVALUATED"):
        assert said in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


def test_a_run_leaves_a_ledger_that_verifies_with_every_session_closed(decoded):
    place, _ = decoded
    assert verify(place.ledger.path).exit_code == 0
    assert phases(place.ledger)[:4] == ["opened", "closed"] * 2  # the pilot and the session
    assert sorted(phases(place.ledger)[4:]) == ["closed"] * 2 + ["opened"] * 2


def test_progress_goes_to_standard_error_and_the_table_alone_to_standard_output(decoded):
    _, done = decoded
    assert "session 1 of 1" in done.stderr
    assert "session 1 of 1" not in done.stdout


def test_a_method_in_a_file_outside_the_package_is_measured_and_judged(decoded):
    place, _ = decoded
    body = results(list(place.ledger.records()))["my_window"]
    assert body["latency_ms"]["median"] > 0
    assert body["witness"]["attended_tokens"] == 16
    assert measured(body) in ("INCONCLUSIVE", "VOID")
    # The folder holds weights that nobody trained.
    quality = (body["verdict"]["quality"], body["verdict"]["quality_reason"])
    assert quality == ("NOT_EVALUATED", "text-not-predicted")
    assert body["quality"]["cosine_mean"] > 0
    assert body["memory"]["reachable_bytes"] > 0


def test_a_method_that_raises_is_void_with_its_reason_and_all_others_stand(decoded):
    place, done = decoded
    bodies = results(list(place.ledger.records()))
    failed = bodies.pop("raises_late")
    assert failed["verdict"]["latency"] == "VOID"
    assert failed["failure"] == "IndexError: block 25 is out of range"
    assert {measured(body) for body in bodies.values()} <= {"", "INCONCLUSIVE", "VOID"}
    assert "raises_late: IndexError: block 25 is out of range" in done.stdout


def test_a_second_run_is_json_and_is_compared_with_the_first_arm_by_arm(decoded):
    """As `module:Class`; the same method, so the same arm."""
    place, _ = decoded
    method = "tests.third_party.my_window:MyWindow"
    done = place.run(*place.arguments("--method", method, "--no-quality", "--json"))
    assert done.stderr == ""
    bodies = {body["arm"]: body for body in json.loads(done.stdout)}
    judged = {measured(body) for body in bodies.values() if body["role"] == "candidate"}
    assert done.returncode == (12 if "VOID" in judged else 11)
    assert bodies["my_window"]["verdict"]["quality_reason"] == "not-asked"
    compared = place.run("ledger", "diff", "--json")
    assert compared.returncode == 0
    changes = {change["arm"]: change for change in json.loads(compared.stdout)["changes"]}
    change = changes["my_window"]
    assert change["after"]["run"] == bodies["my_window"]["run"] != change["before"]["run"]
    assert change["before"]["source_sha256"] == change["after"]["source_sha256"]
    assert change["latency_ratio"] > 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_leaves_a_valid_ledger_an_aborted_session_no_worker_and_exit_130(
    tmp_path, number
):
    place = make_place(tmp_path)
    with place.start(*place.arguments()) as process:
        wait_for(lambda: place.ledger.path.exists() and phases(place.ledger) == ["opened"])
        wait_for(lambda: children(process.pid) != [])
        workers = children(process.pid)
        process.send_signal(number)
        out, err = process.communicate(timeout=LONGEST_S)
    assert process.returncode == 130
    assert phases(place.ledger) == ["opened", "aborted"]
    assert verify(place.ledger.path).exit_code == 0
    assert out == ""
    assert err.splitlines()[-1] == "interrupted"
    assert "Traceback" not in err
    # The last one may have been started while its parent ended, and then ends of itself.
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers))


def children(pid: int) -> list[str]:
    """Processes that this one started and that still run."""
    return [each.name for each in Path("/proc").glob("[0-9]*") if parent(each) == pid]


def parent(process: Path) -> int | None:
    """From its state, which follows its name in parentheses; None: it ended meanwhile."""
    try:
        return int((process / "stat").read_text().rpartition(")")[2].split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return None


def wait_for(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + LONGEST_S
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.05)


def test_a_method_that_hangs_is_void_and_the_others_are_measured_without_it(
    attnbench, place, monkeypatch
):
    make_place(place.folder)
    monkeypatch.setattr(workers, "SILENCE_S", 15.0)
    done = attnbench(*place.arguments("--method", f"{BAD}:Hangs"))
    assert done.code == 12
    assert "said nothing for 15 s and was killed" in done.err
    assert phases(place.ledger)[:4] == ["opened", "failed", "opened", "closed"]
    reasons = {
        r.body["arm"]: r.body["verdict"]["latency_reason"]
        for r in place.ledger.records()
        if r.kind is Kind.RESULT
    }
    assert [arm for arm, reason in reasons.items() if reason == "hung"] == ["hangs"]
    assert verify(place.ledger.path).exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--method", "int8_kw"], 2, "did you mean int8_kv?"),
        (["--method", "sink_window,windw=3"], 2, "did you mean window?"),
        (["--method", "no_such_file.py:Mine"], 2, "no_such_file.py"),
        (["--ctx", "100000"], 2, "the largest context for this model is 4096"),
        (["--ctx", "0"], 2, "context of 0 tokens"),
        (["--batch", "-1"], 2, "--batch -1"),
        (["--protocol", "rigorus"], 2, "did you mean rigorous?"),
        (["--text", "no_such.txt"], 2, "no_such.txt"),
        (["--mode", "graph", "--device", "cpu"], 1, "needs a CUDA GPU"),
        (["--model", "no/such/model.gguf"], 2, "no/such/model.gguf"),
        (["--model", "./no_such"], 2, "./no_such"),
        (["--model", ""], 2, "the name of the model is empty"),
        (["--model", "embeded"], 2, "did you mean embedded?"),
        (["--method", ""], 2, "names no method"),
        (["--threads", "4096"], 2, "--threads 4096"),
        (["--model", "meta-llama/Llama-3.2-1B"], 1, "preset:llama-3.2-1b"),
        (["--batch", "1000000"], 1, "the largest batch for this context"),
        (["--slower-allowed", "-1"], 2, "slower-allowed"),
        (["--quality", "full", "--no-quality"], 2, "--quality full judges"),
        (["--mode", "fused"], 2, "fused"),
        (["--mode", "compiled", "--device", "cpu"], 1, "needs a CUDA GPU"),
        (["--ctx", "512,many"], 2, "no list of whole numbers"),
        (["--batch", "1,,2"], 2, "no list of whole numbers"),
        (["--ctx", "256,512", "--primary", "512"], 2, "no context and batch"),
        (["--ctx", "256,512", "--primary", "1024x1"], 2, "there are 256x1, 512x1"),
        (["--figure", "sweep.bmp"], 2, "no known format"),
    ],
)
def test_bad_input_is_an_error_with_a_way_out_and_nothing_is_recorded(
    attnbench, place, arguments, code, said
):
    done = attnbench("decode", *arguments)
    assert done.code == code
    assert said in done.err
    assert done.out == ""
    assert not place.ledger.path.exists()


def test_a_number_that_is_named_twice_is_said_to_be_measured_once(capsys):
    assert numbers("--ctx", "256,512,256") == (256, 512)
    assert "note: --ctx names 256 more than once" in capsys.readouterr().err
    assert numbers("--ctx", "256,512") == (256, 512)
    assert not capsys.readouterr().err


@pytest.mark.parametrize("more", [(), ("--plan",), ("--plan", "--model", "no/such.gguf")])
def test_a_ledger_that_was_changed_is_found_out_before_anything_else(attnbench, place, more):
    for number in range(3):
        place.ledger.append("session", {"run": "aa", "number": number})
    text = place.ledger.path.read_text()
    place.ledger.path.write_text(text.replace('"number":1', '"number":7'))
    done = attnbench("decode", *more)
    assert done.code == 13
    assert "line 2" in done.err
    assert "plan" not in done.err


@pytest.mark.parametrize("more", [(), ("--plan",), ("--plan", "--model", "no/such.gguf")])
@pytest.mark.parametrize("place_of_it", ["file/ledger.jsonl", "folder", "/proc/x/ledger.jsonl"])
def test_a_ledger_that_cannot_be_written_is_an_error_before_anything_else(
    attnbench, place, place_of_it, more
):
    (place.folder / "file").write_text("")
    (place.folder / "folder").mkdir()
    done = attnbench("decode", "--ledger", place_of_it, *more)
    assert done.code == 1
    assert f"{place_of_it} cannot be written" in done.err
    assert "--ledger" in done.err
    assert "plan" not in done.err


def test_a_plan_runs_nothing_and_writes_no_ledger(attnbench, place):
    arguments = ("decode", "--plan", "--method", "sink_window,window=64", "--ctx", "512")
    shown = attnbench(*arguments)
    assert shown.code == 0
    assert "sink_window,window=64,impl=torch" in shown.out
    data = json.loads(attnbench(*arguments, "--json").out)
    assert data["context"] == 512
    assert list(place.folder.iterdir()) == []


def test_a_plan_of_several_places_is_shown_for_people_and_machines(attnbench, place):
    arguments = ("decode", "--plan", "--ctx", "256,512", "--batch", "1,2", "--primary", "512x1")
    assert "primary" in attnbench(*arguments).out
    data = json.loads(attnbench(*arguments, "--json").out)
    assert [(p["context"], p["batch"]) for p in data["places"]] == [
        (256, 1),
        (512, 1),
        (256, 2),
        (512, 2),
    ]
    assert data["primary"] == {"context": 512, "batch": 1}


def test_help_names_every_exit_code_and_shows_examples(attnbench):
    out = attnbench("decode", "--help").out
    assert "130 interrupted" in out
    assert "attnbench decode --plan --model preset:llama-3.2-1b --ctx 32768 --batch 4" in out
    assert "numpy's documentation" in " ".join(out.replace("│", " ").split())
