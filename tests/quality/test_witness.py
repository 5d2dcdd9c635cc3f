"""The share of tokens that a method says it attends to is not believed where it cannot be."""

import dataclasses
import math
from typing import ClassVar

import numpy as np
import pytest
import torch

from attnbench.methods.base import Family
from attnbench.methods.sink_window import SinkWindow
from attnbench.methods.zero_cost import ZeroCost
from attnbench.quality.candidates import Candidate, Roster
from attnbench.quality.gates import Quality, judge
from attnbench.quality.local import LocalGate
from attnbench.quality.witness import most_mass
from tests.quality.layers import Mutant, MutantLayer, gaussian_trace
from tests.quality.test_gates import perfect, verdict_on


@dataclasses.dataclass(frozen=True)
class Says(Mutant):
    """Exact attention with this witness."""

    witness: dict = dataclasses.field(default_factory=dict)

    def layer(self, shape):
        layer = super().layer(shape)
        layer.witness = lambda: self.witness
        return layer


def gated(method, *, kept_mass=True):
    roster = Roster([Candidate("arm", method)])
    gate = LocalGate(roster, seed=1, kept_mass=kept_mass)
    for window in range(2):
        traces = [gaussian_trace(layer=layer, seed=10 * window + layer) for layer in (0, 5)]
        gate.add_window(traces, lambda _: None)
    return gate.arrays().get("arm"), roster.failures.get("arm")


NO_SHARES = (math.nan, 7.0, 0.0, -1, "all", None)


@pytest.mark.parametrize("witness", [{}, *({"kept_share": said} for said in NO_SHARES)])
def test_what_is_no_share_of_tokens_is_a_typed_failure(witness):
    arrays, failure = gated(Says(witness=witness))
    assert arrays is None
    assert failure.reason == "false-witness"
    assert "kept_share" in failure.message
    assert failure.hint


def test_a_control_may_attend_to_nothing():
    arrays, failure = gated(ZeroCost())
    assert failure is None
    assert (arrays.kept_share == 0).all()


@pytest.mark.parametrize("kept_mass", [True, False])
def test_a_share_that_no_such_selection_could_do_with_earns_no_verdict(kept_mass):
    arrays, _ = gated(Says(witness={"kept_share": 0.01}), kept_mass=kept_mass)
    verdict = judge(arrays.pack(), "approximate", "trained")
    assert (verdict.verdict, verdict.reason) == (Quality.NOT_EVALUATED, "false-witness")
    assert "1.0% of the tokens" in verdict.next_step
    assert verdict.figures["cosine_mean"] == pytest.approx(1)
    assert not [name for name in verdict.figures if name.startswith(("skill", "null_o", "null_ra"))]


def test_a_lie_saves_nobody_from_what_kills():
    spoilt = Says(spoil=lambda output: output / 2, witness={"kept_share": 0.01})
    arrays, _ = gated(spoilt)
    assert judge(arrays.pack(), "approximate", "trained").verdict is Quality.KILL


@pytest.mark.parametrize("kept_mass", [True, False])
def test_an_honest_selection_is_believed(kept_mass):
    arrays, _ = gated(SinkWindow(sinks=4, window=60, impl="torch"), kept_mass=kept_mass)
    verdict = judge(arrays.pack(), "approximate", "trained")
    assert verdict.reason != "false-witness"
    assert "skill" in verdict.figures
    if kept_mass:
        by_layer = arrays.kept_mass.mean(-1)
        assert (by_layer < arrays.most_mass).all()


def test_heads_may_share_out_what_is_kept():
    """All of one head and little of the other: more than either could keep of an equal share."""
    flat = torch.full((1, 100), 0.01, dtype=torch.float64)
    sharp = torch.zeros(1, 100, dtype=torch.float64)
    sharp[0, 0] = 1
    assert most_mass(torch.cat([flat, sharp]), 0.5, 2) == pytest.approx((0.99 + 1) / 2)
    assert most_mass(flat, 0.5, 1) == pytest.approx(0.5)


class MergedLayer(MutantLayer):
    """Attends to one mean a stretch of tokens, weighted by how many it stands for."""

    def prefill(self, cache, q=None):
        self.count = cache.length.tokens
        stretches = [
            rows[:, :, : self.count].split(self.method.tokens, dim=2) for rows in (cache.k, cache.v)
        ]
        self.k, self.v = (torch.stack([s.mean(2) for s in part], dim=2) for part in stretches)
        self.sizes = torch.tensor([float(s.shape[2]) for s in stretches[0]])
        self.new = []

    def decode(self, q, k, v):
        self.new.append((k, v))
        keys = torch.cat([self.k, *(each for each, _ in self.new)], dim=2)
        values = torch.cat([self.v, *(each for _, each in self.new)], dim=2)
        sizes = torch.cat([self.sizes, torch.ones(len(self.new))])
        group = self.shape.group
        keys, values = keys.repeat_interleave(group, 1), values.repeat_interleave(group, 1)
        scores = q @ keys.transpose(-1, -2) * self.shape.scale + sizes.log()
        return scores.softmax(-1) @ values

    def tensors(self):
        yield from (self.k, self.v, *(each for pair in self.new for each in pair))

    def witness(self):
        kept = self.k.shape[2] + len(self.new)
        return {"kept_share": kept / (self.count + len(self.new))}


@dataclasses.dataclass(frozen=True)
class Merged(Mutant):
    tokens: int = 4

    family: ClassVar[Family] = Family.APPROXIMATE

    def layer(self, shape):
        return MergedLayer(self, shape)


def test_who_merged_tokens_and_keeps_no_more_than_it_says_is_believed():
    arrays, failure = gated(Merged())
    assert failure is None
    assert arrays.compact.all()
    assert judge(arrays.pack(), "approximate", "trained").reason != "false-witness"


def test_what_keeps_more_than_it_says_is_not_compact():
    class Boasts(MergedLayer):
        def witness(self):
            return {"kept_share": 0.01}

    class Boasting(Merged):
        def layer(self, shape):
            return Boasts(self, shape)

    arrays, _ = gated(Boasting(tokens=1))  # all of it, kept apart
    assert not arrays.compact.any()
    assert judge(arrays.pack(), "approximate", "trained").reason == "false-witness"


def test_where_the_weights_explain_no_head_the_cosine_is_asked():
    unknown = np.full((1, 3, 5), np.nan, np.float32)
    lying = perfect(
        kept_mass=unknown,
        most_mass=unknown[..., 0],
        compact=np.zeros((1, 3), np.float32),
        null_oracle=np.full((2, 3, 5), 0.7, np.float32),
    )
    assert verdict_on(lying).reason == "false-witness"
    fair = dataclasses.replace(lying, null_oracle=np.full((2, 3, 5), 0.99, np.float32))
    assert verdict_on(fair).reason == "gates-not-run"
