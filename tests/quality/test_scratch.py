"""Models trained from scratch: the same data for all, and a stop that changes nothing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from attnbench.methods.base import CacheLength, CacheView, LayerShape
from attnbench.methods.registry import parse
from attnbench.quality.scratch_model import new_model
from attnbench.quality.scratch_ranks import Ranks
from attnbench.quality.scratch_recipe import PRESETS, preset
from attnbench.quality.scratch_text import ScratchText, batch_at, read_scratch, windows_of
from attnbench.quality.scratch_training import Place, Training, train
from attnbench.quality.text import TextTooShort

CPU = torch.device("cpu")
TINY = replace(
    preset("smoke"),
    width=16,
    layers=1,
    heads=2,
    kv_heads=1,
    feed_forward=32,
    context=16,
    batch=4,
    steps=8,
    evaluated=256,
    watched=64,
    watch_every=2,
    keep_every=3,
    multiples=(1, 2),
)
SCHEMES = ("learned_absolute", "rope", "alibi,learn=true", "cy_bias,mode=nested", "decay_gate")


@pytest.fixture(scope="module")
def text() -> ScratchText:
    """Words in an order that can be learned."""
    drawn = np.random.default_rng(0).choice(["the cat ", "sat on ", "a mat. "], size=1000)
    data = np.frombuffer("".join(drawn).encode(), dtype=np.uint8)
    return ScratchText("words", data[:6000], data[6000:])


def trained(text, spec="cy_bias,mode=nested", folder=None, told=lambda *_: None, recipe=TINY):
    place = Place(CPU, torch.float32, kept=folder)
    return train(recipe, parse(spec).resolved(CPU), 3, text, place, told)


def losses(outcome):
    return outcome.nats, outcome.curve, outcome.learned


def test_the_source_preset_has_the_parameters_that_were_published():
    recipe = PRESETS["l4"]
    counts = {
        spec: new_model(recipe, parse(spec).resolved(CPU), 0, CPU).count()
        for spec in ("learned_absolute", "cy_bias")
    }
    assert counts == {"learned_absolute": 26_399_744, "cy_bias": 25_351_168}
    assert recipe.tokens / 2_000_000 == pytest.approx(36.9, abs=0.05)


def test_weights_outside_the_scheme_are_the_same_for_every_scheme_and_others_for_another_seed():
    def weights(spec, seed=1):
        model = new_model(TINY, parse(spec).resolved(CPU), seed, CPU)
        kept = {n: p for n, p in model.named_parameters() if not n.startswith("scheme.")}
        return torch.cat([p.detach().flatten() for p in kept.values()])

    first = weights("alibi")
    for spec in SCHEMES:
        assert torch.equal(weights(spec), first)
    assert not torch.equal(weights("alibi", 2), first)


def test_a_step_draws_the_same_rows_whenever_it_is_asked_and_others_by_seed_and_step(text):
    rows = batch_at(text.training, TINY, 3, 5)
    assert rows.shape == (4, 17)
    np.testing.assert_array_equal(rows, batch_at(text.training, TINY, 3, 5))
    assert not np.array_equal(rows, batch_at(text.training, TINY, 3, 6))
    assert not np.array_equal(rows, batch_at(text.training, TINY, 4, 5))


def test_held_out_windows_lie_evenly_and_stay_within_the_text(text):
    windows = windows_of(text.held_out, 32, 256)
    assert windows.shape == (8, 33)
    np.testing.assert_array_equal(windows[0], text.held_out[:33])
    np.testing.assert_array_equal(windows[-1], text.held_out[-33:])


@pytest.mark.parametrize("spec", SCHEMES)
def test_every_scheme_trains_and_predicts_better_than_single_bytes(text, spec):
    outcome = trained(text, spec, recipe=replace(TINY, steps=60, rate=1e-2, warm_up=0))
    assert outcome.curve[-1].held_out < min(text.unigram_nats(), outcome.curve[0].held_out)
    assert set(outcome.nats) == {"16", "32"}
    assert [point.step for point in outcome.curve][:3] == [2, 4, 6]


@pytest.mark.parametrize("stop", [2, 4, 6, 8])
def test_a_run_that_was_stopped_ends_as_one_that_was_not(text, tmp_path, stop):
    def stops(done, *_):
        if done == stop:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained(text, folder=tmp_path, told=stops)
    assert len(list(tmp_path.glob("*.pt"))) == (stop > 3)
    again: list[int] = []
    resumed = trained(text, folder=tmp_path, told=lambda done, *_: again.append(done))
    assert again[0] == {2: 2, 4: 4, 6: 4, 8: 8}[stop]
    assert losses(resumed) == losses(trained(text))
    assert [path.suffix for path in tmp_path.iterdir()] == [".json"]


def test_a_model_that_had_ended_is_not_trained_again_and_another_plan_is(text, tmp_path):
    first = trained(text, folder=tmp_path)
    told: list[int] = []
    assert trained(text, folder=tmp_path, told=lambda *_: told.append(1)) == first
    assert told == []
    trained(text, "alibi", folder=tmp_path, told=lambda *_: told.append(1))
    assert told


def test_a_loss_that_is_no_number_ends_the_model_and_says_where(text):
    outcome = trained(text, recipe=replace(TINY, rate=1e30, clip=1e30, warm_up=0))
    assert outcome.diverged_at == 2
    assert outcome.nats == {}


def test_processes_share_every_batch_without_leaving_a_row_out(text):
    rows = torch.from_numpy(batch_at(text.training, TINY, 0, 0))
    shares = [Ranks(rank, rank, 2).own(rows) for rank in range(2)]
    assert torch.equal(torch.stack(shares, dim=1).flatten(0, 1), rows)
    with pytest.raises(Exception, match="does not part among 3"):
        Ranks(0, 0, 3).require_shares(4)


def test_a_model_decodes_byte_by_byte_what_it_says_of_the_whole_text(text):

    training = Training(
        TINY, parse("cy_bias,mode=nested").resolved(CPU), 0, text, Place(CPU, torch.float32)
    )
    for _ in range(4):
        training._step()
    model, block = training.model, training.model.blocks[0]
    tokens = torch.from_numpy(text.held_out[:12].astype(np.int64))[None]
    seen = []
    block.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    with torch.no_grad():
        model(tokens)
        x = block.norm_attention(seen[0])
        q, k, v = (
            part.view(1, 12, -1, 8).transpose(1, 2)
            for part in block.qkv(x).split([16, 8, 8], dim=-1)
        )
        whole = model.scheme.attend(0)(q, k, v)
        shape = LayerShape(1, 2, 1, 8, 12, torch.float32, CPU, 0, 8**-0.5)
        rows = torch.zeros(1, 1, 12, 8)
        cache = CacheView(rows, rows.clone(), CacheLength(CPU))
        layer = model.scheme.decoder(shape)
        layer.prefill(cache)
        for at in range(12):
            one = slice(at, at + 1)
            out = layer.decode(q[:, :, one], k[:, :, one], v[:, :, one])
            torch.testing.assert_close(out, whole[:, :, one], atol=1e-5, rtol=1e-5)
            cache.length.advance()


def test_a_text_is_parted_and_one_that_is_too_short_is_refused(tmp_path):
    file = tmp_path / "text.txt"
    file.write_text("abcdefgh " * 10_000)
    found = read_scratch(preset("smoke"), file, None)
    assert (len(found.training), len(found.held_out)) == (30_000, 60_000)
    other = tmp_path / "other.txt"
    other.write_text("ijkl " * 20_000)
    parted = read_scratch(preset("smoke"), file, other)
    assert (len(parted.training), len(parted.held_out)) == (90_000, 60_000)
    assert parted.sha256 != found.sha256
    with pytest.raises(TextTooShort, match="preset l4 trains on 2000000"):
        read_scratch(preset("l4"), file, None)
