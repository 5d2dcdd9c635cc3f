"""A map of kept tokens shows what a method attends to, and a false one is told by the outputs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from attnbench.methods import registry
from attnbench.methods.int8_kv import Int8Kv
from attnbench.methods.sdpa import Sdpa
from attnbench.methods.sink_window import SinkWindow
from attnbench.quality.kept_map import bin_texts, bin_tokens, named
from attnbench.quality.mapped import head_shares, kept_map_of
from attnbench.quality.replay import replay
from attnbench.quality.samples import GateArrays
from tests.quality.layers import gaussian_trace
from tests.quality.test_gates import perfect

TRACE = gaussian_trace(context=90, steps=3, heads=4, kv_heads=2, dim=16, sharpness=2)
TELLING = (
    "aether,variant=scaled,block=8,threshold=share,value=0.2",
    "aether,variant=trt,block=8,threshold=share,value=0.2,heads=own",
    "quest,share=0.2,page=4,dense_layers=0",
    "dcr_topk,coverage=0.2,k_min=1,generation=m1",
    "dcr_topk,coverage=0.2,k_min=1,generation=m1,sharing=group",
    "sink_window,sinks=3,window=20,impl=torch",
    "oracle_topk,share=0.2",
    "oracle_topk,share=0.2,shared=True",
    "random_k,share=0.2",
    "rank_window,coverage=0.2,k_min=1",
    "topk_warm,coverage=0.2,k_min=1",
    "coded_topk,share=0.2,sample=64,sinks=2,recent=6,dense=0,impl=torch",
)


@pytest.mark.parametrize("spec", TELLING)
def test_what_a_selection_names_is_what_its_outputs_show_and_what_it_declares(spec):
    method = registry.parse(spec)
    found = named(method, TRACE)
    assert found.outside < 1e-6
    assert found.shares.shape == (3, 4, 6)
    last = TRACE.context + torch.arange(3) + 1
    held = (last[:, None] - 16 * torch.arange(6)).clamp(0, 16)
    kept = (found.shares.nan_to_num() * held[:, None]).sum(-1).mean(-1) / last
    declared = replay(method, TRACE).kept_share
    assert kept.tolist() == pytest.approx(declared)
    assert 0.05 < float(kept.mean()) < 0.5


def test_the_kernels_name_what_they_kept_too():
    trace = gaussian_trace(context=60, steps=2, heads=4, kv_heads=2, dim=64, sharpness=2)
    specs = (
        "aether,variant=scaled,block=8,threshold=share,value=0.3",
        "quest,share=0.3,page=8,dense_layers=0",
        "sink_window,sinks=3,window=20",
    )
    for spec in specs:
        kernels, plain = (
            named(replace(registry.parse(spec), impl=impl), trace) for impl in ("triton", "torch")
        )
        assert torch.equal(kernels.shares, plain.shares)
        assert kernels.outside < 1e-6


def test_a_method_that_leaves_nothing_out_needs_to_name_nothing():
    for method in (Sdpa(), Int8Kv(impl="torch")):
        found = named(method, TRACE)
        assert torch.equal(found.shares.nan_to_num(1.0), torch.ones(3, 4, 6).double())
        assert found.outside == 0


def test_a_layer_that_names_other_tokens_than_it_attends_to_is_found_out():
    class Boaster(SinkWindow):
        def layer(self, shape):
            layer = super().layer(shape)
            true = layer.attended_rows
            layer.attended_rows = lambda q: true(q).flip(-1)
            return layer

    assert named(Boaster(sinks=3, window=20, impl="torch"), TRACE).outside > 0.1


def test_a_selection_that_names_nothing_has_no_map():
    class Silent(SinkWindow):
        def layer(self, shape):
            layer = super().layer(shape)
            layer.attended_rows = lambda q: None
            return layer

    found = named(Silent(sinks=3, window=20, impl="torch"), TRACE)
    assert found.shares.isnan().all()
    assert np.isnan(found.outside)


def test_bins_are_powers_of_two_of_which_few_are_enough():
    assert [bin_tokens(n) for n in (1, 1024, 1025, 8208)] == [16, 16, 32, 256]


class Letters:
    """A tokenizer of the alphabet."""

    def decode(self, ids: list[int]) -> str:
        return "".join(chr(97 + each) for each in ids)


def mapped(**changes) -> GateArrays:
    """Two layers of two heads over 40 tokens, the second bin kept by half of the heads, the first
    in half of the steps, the last always; the last is seen in the second step alone."""
    shares = np.zeros((1, 2, 2, 2, 3), np.float32)
    shares[..., 0, :, 0] = 1.0
    shares[..., 0, 1] = 1.0
    shares[..., 2] = 1.0
    shares[:, :, 0, :, 2] = np.nan
    arrays = perfect()
    texts = bin_texts(Letters(), torch.arange(40) % 26, 16)
    return replace(
        arrays,
        context=np.array([38]),
        layers=np.array([1, 4]),
        kept_map=shares,
        map_outside=np.zeros((1, 2), np.float32),
        map_bin=np.array([16]),
        map_text=texts,
        kept_share=np.full((1, 2, 2), 0.25, np.float32),
        **changes,
    )


def test_a_record_says_by_layer_what_is_kept_and_which_text_that_is():
    said = kept_map_of(mapped())
    assert said.hundredths == ((50, 50, 100), (50, 50, 100))
    assert (said.tokens, said.steps, said.bin_tokens, said.share) == (40, 2, 16, 0.25)
    first, least = said.most[0], said.least[0]
    assert (first.begin, first.end, first.share, first.text) == (32, 40, 1.0, "ghijklmn")
    assert (least.begin, least.text[:3]) == (16, "qrs")
    assert np.allclose(head_shares(mapped())[0], [[0.5, 1.0, 1.0], [0.5, 0.0, 1.0]])


def test_no_map_is_made_of_what_was_not_asked_for_cannot_be_told_or_leaves_nothing_out():
    assert kept_map_of(perfect()) is None
    arrays = mapped()
    for same in (np.nan, 1.0):
        assert kept_map_of(replace(arrays, kept_map=np.full_like(arrays.kept_map, same))) is None


def test_a_map_survives_being_packed():
    again = mapped().pack().arrays()
    assert kept_map_of(again) == kept_map_of(mapped())
    assert again.map_text.tolist()[2] == "ghijklmn"
