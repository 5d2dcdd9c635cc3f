"""A protocol file is read strictly, and everything that is wrong with it is said at once."""

from __future__ import annotations

import hashlib

import pytest

from attnbench.protocol.bands import DEFAULT_BANDS, Gate
from attnbench.protocol.document import STRONGEST
from attnbench.protocol.presets import CANONICAL, RIGOROUS, SEQUENTIAL
from attnbench.protocol.reading import BadProtocol, read, read_file
from attnbench.protocol.template import template
from tests.protocol.texts import ORDER, SPEED, changed, file_of
from tests.protocol.texts import QUALITY as GATED

CELL = SPEED[SPEED.index("[[cell]]") : SPEED.index("[control]")]
CONTROL = SPEED[SPEED.index("[control]") : SPEED.index("[publish]")]


def problems(*changes: tuple[str, str], text: str = SPEED) -> list[str]:
    with pytest.raises(BadProtocol) as bad:
        read(changed(text, *changes).encode(), "a file")
    return [str(problem) for problem in bad.value.problems]


UNKNOWN = "nobody knows this key; did you mean"
QUALITY = ("bound = 1.4", "bound = 1.4\nkeeps_quality = true")


def before(table: str, *lines: str) -> tuple[str, str]:
    """These lines in front of a table."""
    return table, "\n".join((*lines, table))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (('title = "INT8', 'titel = "INT8'), f"titel: {UNKNOWN} title?"),
        (("bound = 1.4", "bond = 1.4"), f"claim.bond: {UNKNOWN} bound?"),
        (("context = 1024", "contxt = 1024"), f"cell 1.contxt: {UNKNOWN} context?"),
        (("bound = 1.4\n", ""), "claim.bound: is missing"),
        (("= 1024", '= "1024"'), "cell 1.context: expected a whole number, got text"),
        (("= 1024", "= 0"), "cell 1.context: expected a whole number >= 1"),
        (("bound = 1.4", "bound = nan"), "claim.bound: nan is no number to compare with"),
        (("bound = 1.4", "bound = true"), "claim.bound: expected a number, got true or false"),
        (
            ("at-least", "atleast"),
            "claim.direction: 'atleast' is not known; did you mean at-least?",
        ),
        (("float32", "flota32"), "cell 1.dtype: 'flota32' is not known; did you mean float32?"),
        (('"step"', '"layer"'), "cell 1.scope: 'layer' is not known; there are step, attention"),
        (('"INT8 is faster"', '""'), "title: expected text of length >= 1"),
        (("[[cell]]", "[cell]"), "cell: write [[cell]], so that there can be several"),
        (("[control]", "[[control]]"), "control: this is a table of keys, not a list"),
        (
            before("[publish]", "[gates]", "top-1 = 3"),
            "gates.top-1: this is a table of keys, not a whole number",
        ),
        (('["int8_kv", ', "[3, "), "arms: expected text, got a whole number (at [0])"),
        (('["the control is not found"]', "[]"), "publish.void_if: expected a list of length >= 1"),
        (('"faster"', '"fa ster"'), "id: 'fa ster' has other characters than letters, digits, "),
    ],
)
def test_a_key_or_value_that_is_wrong_is_named_with_what_was_meant(change, said):
    (problem,) = (each for each in problems(change) if not each.endswith("missing") or each == said)
    assert problem.startswith(said)


@pytest.mark.parametrize(
    ("said", "changes"),
    [
        ("claim: 'int8_kv is at", [("bound = 1.4", "bound = 1.4\ntolerance = 0.1")]),
        ("claim.arm: is missing: of which", [('arm = "int8_kv"\n', "")]),
        (
            "claim.arm: 'int8kv' is not among arms; did you mean int8_kv?",
            [('arm = "int8_kv"', 'arm = "int8kv"')],
        ),
        ("control: is missing: name an arm whose effect is known", [(CONTROL, "")]),
        (
            "control.arm: the arm of the claim cannot be its own control",
            [('[control]\narm = "sink_window,window=64"', '[control]\narm = "int8_kv"')],
        ),
        ("arms: an arm is named twice", [('"int8_kv", "sink', '"int8_kv", "int8_kv", "sink')]),
        ("control.direction: a control is", [('"at-least"\nbound = 1.1', '"about"\nbound = 1.1')]),
        ("cell: a cell is there twice", [(CELL, CELL + CELL)]),
        ("cell: there is none: write [[cell]]", [(CELL, ""), before("[claim]", "cell = []")]),
        ("cell 1.mode: graph needs a CUDA GPU", [('mode = "eager"', 'mode = "graph"')]),
        (
            "cell 1.mode: scope attention has nothing to compile",
            [('"cpu"', '"cuda"'), ('"step"', '"attention"'), ('"eager"', '"compiled"')],
        ),
        ("cell 1.gpu: device is cpu", [('mode = "eager"', 'mode = "eager"\ngpu = "X"')]),
        ("cell.gpu: is missing: a claim of this-gpu", [('"this-model"', '"this-gpu"')]),
        (
            "claim.keeps_quality: preset:llama-3.2-1b has random weights",
            [('"embedded"', '"preset:llama-3.2-1b"'), QUALITY],
        ),
        ("claim.keeps_quality: quality is false", [before("arms =", "quality = false"), QUALITY]),
        (
            "schedule: no protocol is called 'cannonical'; did you mean canonical?",
            [before("[publish]", "[schedule]", 'preset = "cannonical"')],
        ),
        (
            "schedule.sessions: too few to decide anything: 2 of 3",
            [before("[publish]", "[schedule]", "sessions = 2")],
        ),
        (
            "schedule: protocol 'canonical': levels lie between",
            [before("[publish]", "[decision]", "level = 95.0")],
        ),
        (
            "gates.logit-kn: no gate with bands is called so; did you mean logit-kl?",
            [before("[publish]", "[gates.logit-kn]", "pass_to = 1")],
        ),
        (
            "gates.logit-kl.pass_from: kl_mean_nats has no limit on that side",
            [before("[publish]", "[gates.logit-kl]", "pass_from = -1.0")],
        ),
        (
            "gates.logit-kl: what passes must lie within what is not killed",
            [before("[publish]", "[gates.logit-kl]", "pass_to = 0.5")],
        ),
        ("publish: the same text whether", [("It is not faster.", "It is faster.")]),
    ],
)
def test_what_makes_no_sense_together_is_a_problem_too(said, changes):
    (problem,) = problems(*changes)
    assert problem.startswith(said)


@pytest.mark.parametrize(
    ("change", "where"),
    [
        (("[claim]", 'arms = ["int8_kv"]\n[claim]'), "arms"),
        (("[claim]", '[claim]\narm = "int8_kv"'), "claim.arm"),
        (("[claim]", 'baseline = "sdpa"\n[claim]'), "baseline"),
        (("[publish]", CONTROL + "[publish]"), "control"),
        (("sessions = 3", "sessions = 3\nblocks = 9"), "schedule.blocks"),
        (("[claim]", "[claim]\nkeeps_quality = true"), "claim.keeps_quality"),
    ],
)
def test_an_order_effect_has_neither_arms_nor_a_control_of_the_files(change, where):
    assert [p for p in problems(change, text=ORDER) if p.startswith(f"{where}: ")]


def test_all_problems_are_said_at_once():
    found = problems(
        ("title", "titel"), ("bound = 1.4", 'bound = "x"'), ('"eager"', '"graph"'),
        ("It is not faster.", "It is faster."),
    )  # fmt: skip
    assert [problem.split(":")[0] for problem in found] == [
        "titel", "title", "claim.bound", "cell 1.mode", "publish",
    ]  # fmt: skip


def test_the_error_lists_every_problem_and_says_where_keys_are_explained():
    with pytest.raises(BadProtocol) as bad:
        read(b"", "p.toml")
    assert bad.value.message.startswith("p.toml has 6 problems\n  id: is missing\n  title: is")
    assert "docs/protocols.md" in bad.value.hint
    assert bad.value.exit_code == 2


@pytest.mark.parametrize(("data", "said"), [(b"\xff", "no UTF-8"), (b"id = ", "it is no TOML")])
def test_what_is_no_toml_is_a_problem(data, said):
    with pytest.raises(BadProtocol, match=said):
        read(data, "a file")


def test_the_template_passes_and_the_hash_is_of_the_bytes(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_bytes(template("mine").replace("\n", "\r\n").encode())
    source = read_file(path)
    assert source.file.id == "mine"
    assert source.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_what_is_left_out_is_the_default():
    file = file_of()
    assert (file.baseline, file.quality, file.protocol()) == (STRONGEST, True, CANONICAL)
    assert file.bands() == dict(DEFAULT_BANDS)
    assert file.named_baseline == ""


def test_a_preset_is_changed_by_counts_and_margins_and_says_so():
    file = file_of(
        SPEED,
        ("[publish]", '[schedule]\npreset = "sequential"\nsessions = 5\nblocks = 20\n[publish]'),
        ("[publish]", "[decision]\nequivalence_margin = 0.02\n[publish]"),
    )
    protocol = file.protocol()
    assert (protocol.name, protocol.sessions, protocol.blocks) == ("sequential, changed", 5, 20)
    assert (protocol.looks, protocol.groups) == ((), RIGOROUS.groups)
    assert protocol.equivalence_margin == 0.02
    assert (
        file_of(SPEED, ("[publish]", '[schedule]\npreset = "sequential"\n[publish]')).protocol()
        == SEQUENTIAL
    )


def test_where_every_cell_decides_they_share_the_error_rate():
    second = CELL.replace("1024", "512")
    both = ("[control]", f"{second}[control]")
    rule = ("[publish]", '[decision]\nrule = "every-cell"\n[publish]')
    assert file_of(SPEED, both).protocol().level == 0.95
    assert file_of(SPEED, both, rule).protocol().level == pytest.approx(0.975)


def test_a_gate_can_be_given_other_bands_and_the_others_stay():
    gates = "[gates.norm-ratio]\npass_from = 0.8\nkill_above = 2.0\n[publish]"
    bands = file_of(SPEED, ("[publish]", gates)).bands()
    assert {(b.passes, b.lives) for b in bands[Gate.NORM_RATIO]} == {((0.8, 1.1), (0.7, 2.0))}
    assert bands[Gate.LOGIT_KL] == DEFAULT_BANDS[Gate.LOGIT_KL]


@pytest.mark.parametrize(
    ("direction", "bound", "to_clear"),
    [("at-least", 1.4, 0.4), ("at-least", 0.9, 0), ("at-most", 0.5, 1.0), ("at-most", 1.06, 0)],
)
def test_a_verdict_has_to_clear_the_bound_where_it_is_about_faster_or_slower(
    direction, bound, to_clear
):
    claim = ('"at-least"\nbound = 1.4', f'"{direction}"\nbound = {bound}')
    assert file_of(SPEED, claim).to_clear() == pytest.approx(to_clear)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("[claim]", 'baseline = "sdpa"\n[claim]'), "baseline: leave it out"),
        (("[claim]", "quality = false\n[claim]"), "quality: cannot be false"),
        (("[publish]", "[schedule]\nsessions = 4\n[publish]"), "schedule.sessions: leave it out"),
        (("[publish]", "[decision]\nlevel = 0.9\n[publish]"), "decision.level: leave it out"),
        (("[publish]", "[gates.top-1]\npass_from = 0.9\n[publish]"), "gates: leave it out"),
        (('"step"', '"attention"'), "cell 1: scope step, mode eager and batch 1"),
        (('model = "embedded"', 'model = "preset:llama-3.2-1b"'), "cell 1.model: random weights"),
        (
            ('arm = "int8_kv"\nquantity = "kept', 'arm = "int4"\nquantity = "kept'),
            "is not among arms",
        ),
        (("least = 0.99\n", ""), "require 1: limits nothing"),
        (("least = 0.99", "least = 0.99\ngreatest = 0.9"), "require 1: limits nothing"),
        (('"kept-share"', '"speed-up"'), "require 1: goes with quantities of the quality gates"),
    ],
)
def test_a_claim_about_a_figure_of_the_gates_has_nothing_that_is_about_time(change, said):
    assert any(said in problem for problem in problems(change, text=GATED))


def test_what_is_required_goes_with_such_a_claim_alone():
    require = '[[require]]\narm = "int8_kv"\nquantity = "kept-share"\nleast = 0.5\nwhy = "."\n'
    (said,) = problems(("[publish]", f"{require}[publish]"))
    assert "goes with quantities of the quality gates" in said
