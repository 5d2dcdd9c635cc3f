"""The verdict on schemes, from the losses of models that were trained from scratch."""

from __future__ import annotations

import gzip
import math

import msgspec
import pytest
from msgspec import UNSET

from attnbench.errors import Exit
from attnbench.protocol.appraisal import Said
from attnbench.protocol.cell import Role
from attnbench.protocol.training import (
    ArmTraining,
    CurvePoint,
    SeedOutcome,
    TrainedSamples,
    TrainingCell,
    best,
    judged,
    retrained,
    training_exit,
)

UNIGRAM = 3.0


def outcome(arm, seed, nats, *, rise=1.0, diverged=UNSET):
    """A model whose held-out loss ended at `rise` times its least."""
    losses = (nats * 1.2, nats / rise, nats)
    curve = tuple(
        CurvePoint(step=i, epochs=0.1 * i, training=loss, held_out=loss)
        for i, loss in enumerate(losses)
    )
    found = {} if diverged is not UNSET else {"64": nats, "128": nats + 0.1}
    return SeedOutcome(
        arm=arm,
        seed=seed,
        parameters=10,
        curve=curve,
        nats=found,
        learned={"slope": [[0.1, 0.3], [0.2, 0.2]]} if arm == "candidate" else {},
        diverged_at=diverged,
    )


def samples(candidate, baseline=(2.0, 2.01, 1.99), worse=2.5, **how):
    """A candidate's losses by seed, beside a good baseline and one that is worse."""
    losses = {"candidate": candidate, "good": baseline, "bad": [worse] * len(baseline)}
    return TrainedSamples(
        context=64,
        unigram_nats=UNIGRAM,
        roles={
            "candidate": Role.CANDIDATE, "good": Role.BASELINE, "bad": Role.BASELINE
        },
        outcomes=tuple(
            outcome(arm, seed, nats, **(how if arm == "candidate" else {}))
            for arm, values in losses.items()
            for seed, nats in enumerate(values)
        ),
    )  # fmt: skip


def bare(arm="candidate", role=Role.CANDIDATE):
    return ArmTraining(
        training="smoke",
        run="r",
        cell=TrainingCell(model="scratch:smoke", context=64, dtype="float32", device="cpu"),
        arm=arm,
        method=arm,
        family="replacement",
        role=role,
        source_sha256="",
        verdict=Said(quality="NOT_EVALUATED", quality_reason="not-measured", next_step=""),
        environment={},
        recipe={},
        text="t",
        text_sha256="",
        seeds=(0, 1, 2),
    )


def above(shares, baseline=(2.0, 2.01, 1.99)):
    """A candidate that is so much above the good baseline, seed by seed."""
    return [nats + math.log1p(share) for share, nats in zip(shares, baseline, strict=True)]


@pytest.mark.parametrize(
    ("shares", "verdict"),
    [
        ((-0.05, -0.04, -0.05), ("PASS", "within-margin")),
        ((0.005, 0.006, 0.004), ("PASS", "within-margin")),
        ((-0.05, 0.05, 0.0), ("MARGINAL", "not-resolved")),  # a mean of 0 that may be 5 %
        ((0.03, 0.03, 0.031), ("MARGINAL", "not-resolved")),
        ((0.049, 0.0495, 0.049), ("MARGINAL", "not-resolved")),
        ((0.051, 0.0515, 0.051), ("KILL", "above-margin")),
        ((0.10, 0.10, 0.11), ("KILL", "above-margin")),
        ((0.10, -0.05, 0.2), ("MARGINAL", "not-resolved")),
    ],
)
def test_the_verdict_follows_the_mean_and_its_interval_against_the_best_baseline(shares, verdict):
    found = judged(bare(), samples(above(shares)))
    assert (found.verdict.quality, found.verdict.quality_reason) == verdict
    assert found.above.baseline == "good"
    assert found.above.low < found.above.share < found.above.high
    mean = math.expm1(sum(math.log1p(share) for share in shares) / 3)
    assert found.above.share == pytest.approx(mean)


def test_one_seed_has_no_interval_and_decides_nothing():
    found = judged(bare(), samples([2.5], baseline=(2.0,)))
    assert (found.verdict.quality, found.verdict.quality_reason) == ("MARGINAL", "one-seed")
    assert found.above.low is UNSET


def test_what_was_learned_by_heart_diverged_or_never_learned_is_not_judged():
    good = above((0.0, 0.0, 0.0))
    cases = {
        "overfit": samples(good, rise=1.06),
        "diverged": samples(good, diverged=1),
        "not-learned": samples([3.1] * 3, baseline=(3.1, 3.1, 3.1), worse=3.2),
    }
    for reason, seen in cases.items():
        found = judged(bare(), seen)
        assert (found.verdict.quality, found.verdict.quality_reason) == ("NOT_EVALUATED", reason)
    assert judged(bare(), samples(good, rise=1.04)).verdict.quality == "PASS"


def test_the_exit_code_is_that_of_the_best_candidate():
    seen = samples(above((0.2, 0.2, 0.21)))
    other = tuple(outcome("better", s, n) for s, n in enumerate(above((0.0, 0.001, -0.001))))
    seen = msgspec.structs.replace(
        seen,
        roles={**seen.roles, "better": Role.CANDIDATE},
        outcomes=(*seen.outcomes, *other),
    )
    results = [judged(bare(), seen), judged(bare("better"), seen)]
    assert [r.verdict.quality for r in results] == ["KILL", "PASS"]
    assert [r.best for r in results] == [False, True]
    assert best(seen, Role.CANDIDATE) == "better"
    assert training_exit(results) is Exit.DONE
    assert training_exit([judged(bare(), samples(above((0.2, 0.2, 0.21))))]) is Exit.FALSIFIED
    assert training_exit([judged(bare(), samples([2.0] * 3, rise=1.5))]) is Exit.INCONCLUSIVE


def test_a_record_is_built_again_from_its_samples_and_says_what_was_learned():
    seen = samples(above((0.0, 0.01, 0.02)))
    found = judged(bare(), seen)
    blob = gzip.compress(msgspec.json.encode(seen))
    assert retrained(msgspec.to_builtins(found), blob) == msgspec.to_builtins(found)
    assert found.learned == {"slope": pytest.approx(0.2)}
    assert found.perplexity["128"] / found.perplexity["64"] == pytest.approx(math.exp(0.1))
    baseline = judged(bare("good", Role.BASELINE), seen)
    assert (baseline.verdict.quality_reason, baseline.above) == ("baseline", UNSET)
