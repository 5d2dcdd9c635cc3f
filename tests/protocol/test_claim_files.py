"""The claims' files: complete, strict, and definite enough to be judged."""

from __future__ import annotations

import re
from collections import Counter

import msgspec
import pytest

from attnbench.errors import Exit
from attnbench.protocol.adjudication import recomputation
from attnbench.protocol.claim import (
    ClaimReason,
    Direction,
    Observation,
    Outcome,
    Reach,
    claim_verdict,
)
from attnbench.protocol.claim_file import BadClaims, Kind, read_claims, read_file
from attnbench.protocol.recomputed import aether, anchors, cy_sieve, dcr, slay
from attnbench.protocol.result import Interval
from tests.protocol.claims import CLAIMS

SYSTEMS = {"cy-sieve": 15, "dcr": 26, "slay": 19, "aether": 14, "anchors": 15}
H100 = "NVIDIA H100 80GB HBM3"
replace = msgspec.structs.replace


def sourced():
    return [claim for claim in CLAIMS.values() if claim.system != "probe"]


def measured(*values, gpu=H100, model="preset:llama-3.2-1b", **changes):
    intervals = tuple(Interval(estimate=v, low=v, high=v, level=0.95) for v in values)
    return Observation(intervals=intervals, gpu=gpu, model=model, **changes)


def test_there_are_89_claims_numbered_without_a_gap():
    assert Counter(claim.system for claim in sourced()) == SYSTEMS
    for system, count in SYSTEMS.items():
        keys = [claim.key for claim in sourced() if claim.system == system]
        assert [int(key.partition("-")[2]) for key in keys] == list(range(1, count + 1))


def test_what_is_imported_says_that_nothing_was_measured():
    assert {claim.provenance for claim in sourced()} == {"imported, not measured"}
    probes = {claim.provenance for claim in CLAIMS.values()} - {"imported, not measured"}
    assert probes == {"provisional probe, no raw samples"}


def test_a_word_without_a_figure_got_one_of_ours_and_the_rule_says_so():
    vague = ("AE-02", "AE-03", "AE-12", "DCR-14", "FP-04", "SL-12", "SL-14", "SL-15", "SL-19")
    assert all(CLAIMS[key].entry.rule.ours for key in vague)


def test_no_two_claims_say_the_same():
    counted = Counter(claim.entry.statement for claim in CLAIMS.values())
    assert [statement for statement, count in counted.items() if count > 1] == []


@pytest.mark.parametrize("key", CLAIMS)
def test_a_rule_allows_some_values_and_forbids_others(key):
    """Each rule, given a figure on either side of its bound, falsifies one and not the other."""
    claim = CLAIMS[key].entry.claim()
    rule = CLAIMS[key].entry.rule
    place = {"gpu": rule.gpu, "model": rule.model, "quality": "PASS"}
    step = max(1.0, abs(rule.bound))
    far = rule.bound + (-step if claim.direction is Direction.AT_LEAST else step)
    held = claim_verdict(claim, measured(rule.bound, **place))
    missed = claim_verdict(claim, measured(far, **place))
    assert missed.outcome is Outcome.FALSIFIED
    supports = claim.reach is not Reach.UNIVERSAL
    assert held.outcome is (Outcome.SUPPORTED if supports else Outcome.INCONCLUSIVE)


@pytest.mark.parametrize("key", CLAIMS)
def test_a_rule_that_refers_to_another_claims_refers_to_one_of_its_own_system(key):
    rule = CLAIMS[key].entry.rule
    for text in (rule.measures, rule.where, rule.statistic, rule.void_when):
        for named in re.findall(r"\bas ([A-Z]{2,3}-[0-9]{2})", text):
            assert CLAIMS[named].system == CLAIMS[key].system
            assert named != key


def test_every_arithmetic_claim_is_computed_again_and_nothing_else_is():
    for claim in sourced():
        if claim.entry.kind is Kind.ARITHMETIC:
            assert callable(recomputation(claim))
    computed = {key for room in (cy_sieve, dcr, slay, aether, anchors) for key in room.RECOMPUTED}
    assert computed == {c.key for c in sourced() if c.entry.kind is Kind.ARITHMETIC}


def test_a_figure_of_another_gpu_says_nothing_of_a_local_claim():
    local = CLAIMS["DCR-01"].entry.claim()
    elsewhere = claim_verdict(local, measured(0.11))
    assert (elsewhere.outcome, elsewhere.reason) == (Outcome.UNTESTABLE, ClaimReason.SCOPE)
    there = claim_verdict(local, measured(0.87, gpu="NVIDIA GeForce RTX 4060 Ti"))
    assert there.outcome is Outcome.SUPPORTED


def test_a_figure_of_any_gpu_can_falsify_a_universal_claim_and_none_supports_it():
    order = CLAIMS["DCR-18"].entry.claim()
    assert claim_verdict(order, measured(1.0002, 1.0001)).outcome is Outcome.FALSIFIED
    held = claim_verdict(order, measured(1.09, 1.08))
    assert (held.outcome, held.reason) == (Outcome.INCONCLUSIVE, ClaimReason.ONE_PLACE)


def test_a_speed_that_is_to_keep_quality_falls_with_it():
    claim = CLAIMS["AE-06"].entry.claim()
    seen = measured(6.0, gpu="NVIDIA GeForce RTX 4060", quality="KILL")
    assert claim_verdict(claim, seen).reason is ClaimReason.QUALITY_KILL


GOOD = """
system = "mine"
prefix = "MY"
source = "a page"
provenance = "imported, not measured"
[[claim]]
key = "MY-01"
statement = "It is fast."
source_figure = "2x"
rederived = "2x"
source_status = "UNVERIFIED"
test = "time it"
kind = "measured"
[claim.rule]
measures = "time"
where = "here"
statistic = "mean"
direction = "at-least"
bound = 2
unit = "speed-up"
reach = "this-gpu"
gpu = "GPU"
void_when = "it hangs"
"""


def written(folder, text, name="mine.toml"):
    path = folder / name
    path.write_text(text)
    return path


def test_a_good_file_is_read(tmp_path):
    (claim,) = read_file(written(tmp_path, GOOD))
    assert claim.key == "MY-01"
    assert claim.entry.claim().bound == 2


def test_the_version_changes_with_every_word_and_with_nothing_else(tmp_path):
    (claim,) = read_file(written(tmp_path, GOOD))
    (same,) = read_file(written(tmp_path, "# a remark\n" + GOOD.replace("bound = 2", "bound=2.0")))
    assert same.version == claim.version
    for old, new in (("bound = 2", "bound = 3"), ("a page", "a book"), ("hangs", "stops")):
        (other,) = read_file(written(tmp_path, GOOD.replace(old, new)))
        assert other.version != claim.version


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("bound = 2\n", "", "missing required field `bound` - at `MY-01.rule`"),
        ('void_when = "it hangs"\n', "", "missing required field `void_when`"),
        ('statistic = "mean"', 'statistic = ""', "length >= 1 - at `MY-01.rule.statistic`"),
        ("bound = 2", 'bound = "2"', "Expected `float`, got `str`"),
        ("bound = 2", "bound = 2\nbonud = 3", "unknown field `bonud`"),
        ("bound = 2", "bound = nan", "numbers to compare with"),
        ("bound = 2", "bound = 2\ntolerance = 0.1", "goes with 'about'"),
        ("bound = 2", "bound = 2\ntolerance = -0.1", "no less than 0"),
        ('"at-least"', '"about"', "goes with 'about'"),
        ('"at-least"', '"above"', "Invalid enum value 'above'"),
        ('gpu = "GPU"', "", "must name it"),
        ('"this-gpu"', '"universal"', "names neither GPU nor model"),
        ('"measured"', '"arithmetic"', "has no place"),
        ('"measured"', '"source-code"', "'source-code', and only with it"),
        ('kind = "measured"', 'kind = "measured"\nuntestable = "no"', "and only with it"),
        ('"MY-01"', '"YOUR-1"', "regex"),
        ('"MY-01"', '"YO-01"', "begin with MY"),
        ('system = "mine"', 'system = "yours"', "the file's name says 'mine'"),
        ('system = "mine"', "system =", "is no TOML"),
        ("[[claim]]", "[[claims]]", "claim"),
    ],
)
def test_a_file_that_is_not_what_is_meant_is_refused(tmp_path, old, new, complaint):
    assert old in GOOD
    with pytest.raises(BadClaims, match=complaint) as refused:
        read_file(written(tmp_path, GOOD.replace(old, new, 1)))
    assert refused.value.exit_code is Exit.USAGE


def test_a_key_may_stand_once_in_a_folder(tmp_path):
    written(tmp_path, GOOD)
    written(tmp_path, GOOD.replace('"mine"', '"also"'), "also.toml")
    with pytest.raises(BadClaims, match="MY-01 is there twice"):
        read_claims(tmp_path)


def test_no_recomputation_is_made_up_for_a_claim_that_has_none():
    claim = CLAIMS["DCR-01"]
    with pytest.raises(Exception, match="nothing computes DCR-01 again"):
        recomputation(claim)
    with pytest.raises(Exception, match="nothing computes DCR-01 again"):
        recomputation(replace(claim, system="unheard-of"))
