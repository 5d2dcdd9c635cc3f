import dataclasses

import numpy as np
import pytest
import torch

from attnbench.errors import Unsupported, UsageError
from attnbench.methods.base import Family, KernelConfig
from attnbench.methods.int8_kv import Int8Kv
from attnbench.methods.random_k import RandomK
from attnbench.methods.sdpa import Sdpa
from attnbench.methods.zero_cost import ZeroCost
from attnbench.quality import local
from attnbench.quality.candidates import Candidate, Roster
from attnbench.quality.gates import Quality, judge
from attnbench.quality.local import LocalGate
from attnbench.quality.replay import replay, same_again, sdpa_outputs
from tests.quality.layers import Mutant, gaussian_trace


def roster_of(*methods) -> Roster:
    return Roster([Candidate(method.label, method) for method in methods])


def gate(*methods, windows=2, layers=(0, 5), roster=None) -> LocalGate:
    found = LocalGate(roster or roster_of(*methods), seed=1)
    for window in range(windows):
        traces = (gaussian_trace(layer=layer, seed=10 * window + layer) for layer in layers)
        found.add_window(traces, progress=lambda detail: None)
    return found


def verdict_on(method):
    arrays = gate(method).arrays()[method.label]
    return judge(arrays.pack(), method.family, "trained")


def halved(output):
    return output / 2


def head_dropped(output):
    return output * torch.tensor([1.0, 1.0, 0.0, 1.0])[:, None, None]


def one_nan(output):
    return output.clone().index_fill_(3, torch.tensor([0]), torch.nan)


def heads_swapped(output):
    return output.flip(1)


def test_sdpa_itself_is_perfect_and_its_samples_have_the_stated_axes():
    arrays = gate(Sdpa()).arrays()["sdpa"]
    assert arrays.cosine.shape == (2, 2, 4, 4)
    assert arrays.kept_share.shape == (2, 2, 4)
    assert arrays.null_uniform.shape == (2, 2, 4)
    assert arrays.layers.tolist() == [0, 5]
    assert arrays.context.tolist() == [200]
    assert arrays.deterministic.all()
    assert (arrays.kept_share == 1).all()
    np.testing.assert_allclose(arrays.cosine, 1, atol=1e-6)
    assert arrays.cosine.dtype == np.float32


def test_turns_of_one_layer_and_of_all_give_the_same_samples(monkeypatch):
    methods = (RandomK(share=0.2), ZeroCost())
    at_once = gate(*methods, layers=(0, 5, 7)).arrays()
    for weights_bytes in (1, 2 * 4 * 4 * 204 * 8):  # a layer a turn; two, then one
        monkeypatch.setattr(local, "WEIGHTS_BYTES", weights_bytes)
        for label, arrays in gate(*methods, layers=(0, 5, 7)).arrays().items():
            for name, value in vars(arrays).items():
                np.testing.assert_array_equal(value, getattr(at_once[label], name), err_msg=name)


def test_an_arm_has_one_launch_for_any_number_of_sequences():
    class Picky(Int8Kv):
        def configurations(self, shape):
            raise Unsupported("no kernel for this")

    shape = gaussian_trace().shape
    tuned = KernelConfig(64, 2, 4, 1)
    found = Roster(
        [
            Candidate("default", Int8Kv(impl="triton")),
            Candidate("tuned", Int8Kv(impl="triton"), tuned),
            Candidate("plain", ZeroCost()),
            Candidate("picky", Picky(impl="triton")),
        ]
    )
    found.launch_alike(shape)
    first = Int8Kv(impl="triton").configurations(shape)[0]
    kernels = {candidate.label: candidate.kernel for candidate in found.going()}
    assert kernels == {"default": first, "tuned": tuned, "plain": None}
    assert list(found.failures) == ["picky"]


def test_an_exact_method_gets_only_the_uniform_null():
    arrays = gate(Sdpa()).arrays()["sdpa"]
    assert arrays.null_random.size == arrays.null_oracle.size == 0


def test_random_selection_stands_beside_random_nulls_of_its_own_budget():
    method = RandomK(share=0.3)
    arrays = gate(method).arrays()[method.label]
    assert arrays.kept_share.mean() == pytest.approx(0.3, abs=0.01)
    assert arrays.null_random.mean() == pytest.approx(arrays.cosine.mean(), abs=0.05)
    skill = judge(arrays.pack(), method.family, "trained").figures["skill"]
    assert skill == pytest.approx(0, abs=0.15)


@pytest.mark.parametrize(
    ("spoil", "gate_name"),
    [(halved, "norm-ratio"), (head_dropped, "mean-cosine"), (one_nan, "non-finite")],
)
def test_a_spoiled_output_is_killed(spoil, gate_name):
    verdict = verdict_on(Mutant(spoil))
    assert (verdict.verdict, verdict.reason) == (Quality.KILL, gate_name)


def test_a_dropped_head_is_named():
    verdict = verdict_on(Mutant(head_dropped))
    assert verdict.worst_head == 2
    assert verdict.figures["cosine_lowest_head"] == 0


def test_swapped_heads_are_killed():
    assert verdict_on(Mutant(heads_swapped)).verdict is Quality.KILL


def test_the_ceiling_arm_is_killed_and_does_not_count():
    verdict = verdict_on(ZeroCost())
    assert verdict.verdict is Quality.KILL
    assert not verdict.counts


def test_a_method_that_fails_is_left_out_and_the_others_go_on():
    def fails(output):
        raise Unsupported("needs another GPU")

    roster = roster_of(Mutant(fails), Sdpa())
    assert list(gate(roster=roster).arrays()) == ["sdpa"]
    assert [str(error) for error in roster.failures.values()] == ["needs another GPU"]


def test_an_output_of_the_wrong_shape_is_a_typed_failure():
    roster = roster_of(Mutant(lambda output: output[:, :1]))
    gate(roster=roster)
    assert [type(error) for error in roster.failures.values()] == [Unsupported]


def test_a_replacement_method_is_refused_before_anything_runs():
    @dataclasses.dataclass(frozen=True)
    class Positional(Mutant):
        family = Family.REPLACEMENT

    with pytest.raises(UsageError, match="trained with"):
        Candidate("positional", Positional())


def test_a_method_that_overwrites_its_cache_spoils_no_other_arm():
    @dataclasses.dataclass(frozen=True)
    class Vandal(Mutant):
        def layer(self, shape):
            layer = super().layer(shape)
            take_over = layer.prefill

            def prefill(cache, q=None):
                take_over(cache)
                cache.k.zero_()

            layer.prefill = prefill
            return layer

    arrays = gate(Vandal(), Sdpa()).arrays()
    np.testing.assert_allclose(arrays["sdpa"].cosine, 1, atol=1e-6)


def test_a_replay_of_sdpa_gives_the_recorded_outputs():
    trace = gaussian_trace(heads=6, kv_heads=2)
    torch.testing.assert_close(replay(Sdpa(), trace).outputs, sdpa_outputs(trace))


class Noise:
    """Spoils what it is given, differently each time."""

    def __init__(self):
        self.generator = torch.Generator().manual_seed(0)

    def __call__(self, output):
        return output + torch.randn(output.shape, generator=self.generator)


def answers_the_same(method):
    trace = gaussian_trace()
    return same_again(method, trace, replay(method, trace))


def test_a_method_that_answers_differently_each_time_is_not_deterministic():
    assert not answers_the_same(Mutant(Noise()))
    assert answers_the_same(Mutant(one_nan))
    assert answers_the_same(Sdpa())


def test_noise_in_any_layer_is_found():
    noise = Noise()

    @dataclasses.dataclass(frozen=True)
    class DeepNoise(Mutant):
        def layer(self, shape):
            method = Mutant(noise) if shape.layer == 5 else Mutant()
            return method.layer(shape)

    noisy = DeepNoise()
    found = gate(noisy, Sdpa(), layers=(0, 2, 5)).arrays()
    assert not found[noisy.label].deterministic.all()
    assert found["sdpa"].deterministic.all()


def test_an_output_of_a_class_of_its_own_is_a_typed_failure():
    """It could compute when the harness looks at it."""

    class Lazy(torch.Tensor):
        pass

    roster = roster_of(Mutant(lambda output: output.as_subclass(Lazy)))
    gate(roster=roster)
    assert [error.reason for error in roster.failures.values()] == ["output-type"]
