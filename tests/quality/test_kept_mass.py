import pytest
import torch

from attnbench.methods.int8_kv import Int8Kv
from attnbench.methods.random_k import RandomK
from attnbench.methods.sdpa import Sdpa
from attnbench.methods.sink_window import SinkWindow
from attnbench.methods.zero_cost import ZeroCost
from attnbench.quality import kept_mass as kept_mass_module
from attnbench.quality.kept_mass import effective_weights
from attnbench.quality.nulls import exact_weights
from tests.quality.layers import Mutant, gaussian_trace

TRACE = gaussian_trace(context=150, steps=3, heads=4, kv_heads=2, dim=16, sharpness=2)


def kept_mass(method, trace):
    return kept_mass_module.kept_mass(method, trace).mass


def last_weights():
    exact = exact_weights(TRACE.q, TRACE.k, TRACE.v, TRACE.shape.scale, TRACE.context)
    return exact.weights[:, :, -1].flatten(0, 1)  # [H, R]


def test_the_weights_of_exact_attention_are_read_off_its_outputs():
    one = gaussian_trace(context=150, steps=1, sharpness=2)
    exact = exact_weights(one.q, one.k, one.v, one.shape.scale, one.context).weights[:, :, 0]
    torch.testing.assert_close(
        effective_weights(Sdpa(), one), exact.flatten(0, 1), atol=1e-6, rtol=1e-4
    )


def test_exact_attention_keeps_all_of_the_mass():
    torch.testing.assert_close(kept_mass(Sdpa(), TRACE), torch.ones(4).double(), atol=1e-5, rtol=0)


def test_a_window_keeps_the_softmax_mass_of_its_tokens():
    found = kept_mass(SinkWindow(sinks=4, window=40, impl="torch"), TRACE)
    kept = [*range(4), *range(153 - 40, 153)]
    expected = last_weights()[:, kept].sum(-1)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    assert found.max() < 0.9


def test_a_method_that_says_it_keeps_all_is_not_believed():
    class Boaster(SinkWindow):
        def layer(self, shape):
            layer = super().layer(shape)
            layer.witness = lambda: {"kept_share": 1.0}
            return layer

    found = kept_mass(Boaster(sinks=4, window=40, impl="torch"), TRACE)
    torch.testing.assert_close(found, kept_mass(SinkWindow(4, 40, "torch"), TRACE))


def test_eight_bits_keep_almost_all():
    found = kept_mass(Int8Kv(impl="torch"), TRACE)
    assert (found > 0.98).all()
    assert (found < 1).all()


def test_random_tokens_keep_about_their_share_where_attention_is_even():
    trace = gaussian_trace(context=600, steps=1, heads=8, kv_heads=8, sharpness=0)
    assert kept_mass(RandomK(share=0.3), trace).mean().item() == pytest.approx(0.3, abs=0.02)


def test_what_the_weights_do_not_explain_has_no_kept_mass():
    assert kept_mass(ZeroCost(), TRACE).isnan().all()


def test_a_head_that_ends_elsewhere_has_none_and_the_others_keep_theirs():
    def one_head_of_noise(output):
        return torch.cat([output[:, :1].flip(-1), output[:, 1:]], dim=1)

    found = kept_mass(Mutant(one_head_of_noise), TRACE)
    assert found[1:].min() > 0.999
    assert not found[0] > 0.5


@pytest.mark.parametrize("method", [Sdpa(), SinkWindow(4, 40, "torch"), Int8Kv(impl="torch")])
def test_weights_read_in_many_sequences_are_those_read_in_one(method):
    last = kept_mass_module.last_step(TRACE)
    alone = effective_weights(method, last, at_once=1)
    for at_once in (0, 3):  # all ten stretches of sixteen rows, or some of them
        torch.testing.assert_close(effective_weights(method, last, at_once=at_once), alone)


def test_rows_that_are_drawn_anew_for_every_sequence_are_read_in_one():
    last = kept_mass_module.last_step(TRACE)
    method = RandomK(share=0.3)
    assert not torch.equal(
        effective_weights(method, last), effective_weights(method, last, None, 1)
    )
    mass = torch.minimum(effective_weights(method, last, None, 1), last_weights()).sum(-1)
    torch.testing.assert_close(kept_mass(method, TRACE), mass)
