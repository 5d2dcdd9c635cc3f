import dataclasses

import msgspec
import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from attnbench.errors import UsageError
from attnbench.methods.sdpa import Sdpa
from attnbench.methods.uniform_mean import UniformMean
from attnbench.methods.zero_cost import ZeroCost
from attnbench.quality import capture
from attnbench.quality.candidates import Candidate, Roster, candidate
from attnbench.quality.capture import layer_traces, record_windows, routed
from attnbench.quality.gates import Quality, judge
from attnbench.quality.levels import QualityCounts
from attnbench.quality.replay import sdpa_outputs
from attnbench.quality.run import Material, evenly, gate_windows, run_quality
from attnbench.quality.text import TextTooShort
from tests.models import tiny
from tests.quality.layers import Mutant

CPU = torch.device("cpu")
COUNTS = QualityCounts(context=20, windows=2, steps=5, logit_steps=64)


class LetterTokenizer:
    """A token a letter: the only thing a window needs of a tokenizer."""

    def __call__(self, text, add_special_tokens, verbose):
        return {"input_ids": [ord(letter) % tiny.VOCAB for letter in text]}


def gate_tiny(*methods, counts=COUNTS, model="llama", told=None):
    return gate(tiny.loaded(model), *methods, counts=counts, told=told)


def gate(model, *methods, counts=COUNTS, told=None):
    roster = Roster([Candidate(method.label, method) for method in methods])
    ids = tiny.prompt(counts.windows, counts.tokens)
    progress = (lambda *told_now: told.append(told_now)) if told is not None else lambda *_: None
    found = gate_windows(model, roster, Material(ids), counts, torch.float32, CPU, 7, progress)
    return found, roster


def test_sdpa_in_a_tiny_llama_is_perfect_in_both_parts_and_not_evaluated():
    found, _ = gate_tiny(Sdpa())
    verdict = judge(found["sdpa"].pack(), "exact", "random")
    assert (verdict.verdict, verdict.reason) == (Quality.NOT_EVALUATED, "random-weights")
    assert verdict.figures["cosine_min"] == pytest.approx(1, abs=1e-6)
    assert verdict.figures["kl_mean_nats"] == pytest.approx(0, abs=1e-6)
    assert verdict.figures["top1_agreement"] == 1
    assert (verdict.windows, verdict.steps, verdict.context) == (2, 5, 20)
    assert found["sdpa"].kl_nats.shape == (2, 64)


def test_in_a_model_that_attends_to_all_alike_only_what_is_worse_than_a_plain_mean_is_judged():
    torch.manual_seed(0)
    config = AutoConfig.for_model("llama", **tiny.COMMON)  # weights so small that scores are too
    model = tiny.wrap(AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval())
    found, _ = gate(model, Sdpa(), UniformMean(), ZeroCost())
    verdicts = {label: judge(arm.pack(), "approximate", "trained") for label, arm in found.items()}
    assert verdicts["uniform_mean"].figures["cosine_mean"] > 0.999
    assert {label: (v.verdict, v.reason) for label, v in verdicts.items()} == {
        "sdpa": (Quality.NOT_EVALUATED, "no-power"),
        "uniform_mean": (Quality.NOT_EVALUATED, "no-power"),
        "zero_cost": (Quality.KILL, "mean-cosine"),
    }


def test_the_ceiling_arm_is_killed_where_weights_are_trained():
    found, _ = gate_tiny(ZeroCost())
    verdict = judge(found["zero_cost"].pack(), "control", "trained")
    assert verdict.verdict is Quality.KILL
    assert verdict.figures["kl_mean_nats"] > 0.2


def test_traces_hold_what_the_model_gave_to_attention():
    model = tiny.loaded("granite")  # its scale is its own
    ids = tiny.prompt(1, 30)
    with routed(model, 29, torch.float32, CPU) as bench:
        record = record_windows(bench, ids[:, :-1], 20)
        traces = list(layer_traces(bench, record, 20, 9))
    assert [trace.shape.layer for trace in traces] == [0, 1, 2]
    assert {trace.shape.scale for trace in traces} == {0.3}
    for trace, q, k, v in zip(traces, record.q, record.k, record.v, strict=True):
        assert torch.equal(trace.q, q[:, 0, :, 0])
        assert torch.equal(trace.k[:, 20:].transpose(0, 1), k[:, 0, :, 0])
        assert torch.equal(trace.v[:, 20:].transpose(0, 1), v[:, 0, :, 0])
        assert sdpa_outputs(trace).shape == (9, 4, 8)


def test_recorded_logits_are_the_models_own_over_the_whole_text():
    model = tiny.loaded("llama")
    ids = tiny.prompt(1, 30)
    with routed(model, 29, torch.float32, CPU) as bench:
        record = record_windows(bench, ids[:, :-1], 20)
    own = model.module(ids[:, :-1]).logits[0, 20:]
    torch.testing.assert_close(record.logits[:, 0], own, atol=1e-4, rtol=1e-4)


def test_perplexity_is_of_the_tokens_that_come_next():
    found, _ = gate_tiny(Sdpa())
    arrays = found["sdpa"]
    ids = tiny.prompt(2, COUNTS.tokens)
    own = tiny.loaded("llama").module(ids).logits[:, 20:-1].log_softmax(-1)
    expected = -own.gather(-1, ids[:, 21:, None])[..., 0]
    np.testing.assert_allclose(arrays.nll_sdpa_nats, expected.detach().numpy(), atol=1e-3)
    np.testing.assert_allclose(arrays.nll_nats, arrays.nll_sdpa_nats, atol=1e-4)


def test_windows_that_are_decoded_at_once_give_what_each_gives_alone(monkeypatch):
    counts = msgspec.structs.replace(COUNTS, windows=3)
    at_once, _ = gate_tiny(Sdpa(), ZeroCost(), counts=counts)
    for most in (1, 2):
        monkeypatch.setattr(capture, "MOST_ROWS", most)
        found, _ = gate_tiny(Sdpa(), ZeroCost(), counts=counts)
        for label, arrays in found.items():
            for name, value in vars(arrays).items():
                if name == "map_text":
                    continue
                np.testing.assert_allclose(
                    value, getattr(at_once[label], name), atol=2e-5, err_msg=name
                )


def test_as_many_sequences_are_decoded_at_once_as_there_is_room_for(monkeypatch):
    surveyed = capture.layers_of(tiny.loaded("llama"), 100, torch.float32, CPU)
    cache_bytes = sum(layer.shape.row_bytes * 100 for layer in surveyed)
    for room_bytes, rows in ((0, 1), (3 * cache_bytes, 3), (10**9, capture.MOST_ROWS)):
        monkeypatch.setattr(capture, "CPU_BYTES", room_bytes)
        assert capture.rows_at_once(surveyed) == rows
    assert [len(turn) for turn in evenly(torch.zeros(10, 2), 4)] == [4, 3, 3]


def test_sliding_layers_are_left_out():
    found, _ = gate_tiny(Sdpa(), model="gemma3")
    assert found["sdpa"].layers.tolist() == [1, 3]


def test_the_compounded_part_can_be_left_out():
    found, _ = gate_tiny(Sdpa(), counts=msgspec.structs.replace(COUNTS, logit_steps=0))
    verdict = judge(found["sdpa"].pack(), "exact", "trained")
    assert "logit-kl" in verdict.gates_not_run
    assert verdict.steps == 5


def test_progress_counts_up_to_every_part_of_the_run():
    told = []
    gate_tiny(Sdpa(), ZeroCost(), told=told)
    parts = 1 + 2 * 2 * 3 + 2  # one prefill for both windows, 3 layers an arm in each, one decode
    assert [done for done, _, _ in told] == list(range(parts))
    assert {total for _, total, _ in told} == {parts}


def test_a_method_that_changes_the_shared_cache_is_left_out_and_spoils_no_other():
    @dataclasses.dataclass(frozen=True)
    class Vandal(Mutant):
        def layer(self, shape):
            layer = super().layer(shape)
            take_over = layer.prefill

            def prefill(cache, q=None):
                take_over(cache)
                cache.k[:, :, 3] = 0

            layer.prefill = prefill
            return layer

    vandal = Vandal()
    found, roster = gate_tiny(vandal, Sdpa())
    assert "changed" in str(roster.failures[vandal.label])
    assert found["sdpa"].kl_nats.max() < 1e-6


def test_a_model_without_tokenizer_is_refused():
    with pytest.raises(UsageError, match="no tokenizer"):
        run_on_text(dataclasses.replace(tiny.loaded("llama"), tokenizer=None))


def run_on_text(model, counts=COUNTS, **more):
    return run_quality(
        model,
        Roster([candidate("arm", "sdpa", CPU)]),
        counts,
        dtype=torch.float32,
        device=CPU,
        seed=3,
        progress=lambda *_: None,
        **more,
    )


def reading(name="llama"):
    return dataclasses.replace(tiny.loaded(name), tokenizer=LetterTokenizer())


def test_a_run_reads_the_default_text_and_names_it():
    samples = run_on_text(reading())
    assert samples.text.name == f"numpy {np.__version__} docstrings"
    assert list(samples.arms) == ["arm"]
    assert not samples.failures


def test_the_same_seed_gives_the_same_samples():
    assert run_on_text(reading()).arms == run_on_text(reading()).arms


def test_a_prompt_is_shortened_so_that_every_step_has_a_position():
    samples = run_on_text(reading(), QualityCounts(context=128, windows=1, steps=4))
    assert samples.arms["arm"].arrays().context.tolist() == [128 - 64]
    with pytest.raises(UsageError, match="no room"):
        QualityCounts(context=10, windows=1, steps=4).within(max_context=64)


def test_a_short_text_is_a_typed_error(tmp_path):
    path = tmp_path / "short.txt"
    path.write_text("far too short")
    with pytest.raises(TextTooShort):
        run_on_text(reading(), text_path=str(path))
