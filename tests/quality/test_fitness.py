"""Models that nothing can be judged on say so before any arm runs."""

import dataclasses

import pytest
import torch

from attnbench.errors import ModelError, Unsupported
from attnbench.methods.sdpa import Sdpa
from attnbench.models.sources import load
from attnbench.quality.candidates import Candidate, Roster
from attnbench.quality.fitness import require_causal, require_vocabulary, text_nats
from attnbench.quality.gates import Quality, judge
from attnbench.quality.levels import QualityCounts
from attnbench.quality.run import run_quality
from tests.models import tiny
from tests.quality.test_run import CPU, LetterTokenizer

COUNTS = QualityCounts(context=20, windows=1, steps=2)


class LargeTokenizer:
    def __call__(self, text, add_special_tokens, verbose):
        return {"input_ids": [1000 + ord(letter) for letter in text]}


def run(model, tokenizer=None, *methods, counts=COUNTS):
    return run_quality(
        dataclasses.replace(model, tokenizer=tokenizer or LetterTokenizer()),
        Roster([Candidate(method.label, method) for method in methods or (Sdpa(),)]),
        counts,
        dtype=torch.float32,
        device=CPU,
        seed=0,
        progress=lambda *_: None,
    )


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_decoders_are_causal(name):
    model = tiny.loaded(name)
    require_causal(model, tiny.prompt(1, 40))
    require_vocabulary(model, tiny.prompt(1, 40))


class SeesAhead(torch.nn.Module):
    """Its logits are the running model's, moved by the last token that it is given."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, ids, **more):
        found = self.inner(ids, **more)
        found.logits = found.logits + ids[:, -1:, None]
        return found


def test_a_model_that_sees_ahead_is_refused():
    model = tiny.loaded("llama")
    bad = dataclasses.replace(model, module=SeesAhead(model.module))
    with pytest.raises(ModelError, match="not causal") as refused:
        require_causal(bad, tiny.prompt(1, 40))
    assert "decoder" in refused.value.hint


def test_a_tokenizer_of_another_model_is_refused():
    with pytest.raises(ModelError, match="the model knows") as refused:
        run(tiny.loaded("llama"), LargeTokenizer())
    assert "another model's" in refused.value.hint


def test_a_model_whose_own_logits_are_not_finite_is_refused_and_no_arm_is_judged():
    model = tiny.loaded("llama")
    with torch.no_grad():
        model.module.get_output_embeddings().weight[3] = torch.nan
    with pytest.raises(ModelError, match="not finite") as refused:
        run(model)
    assert "float32" in refused.value.hint


def test_a_method_that_takes_other_head_sizes_only_has_no_verdict_and_the_others_have():
    @dataclasses.dataclass(frozen=True)
    class Choosy(Sdpa):
        def check(self, shape):
            raise Unsupported(f"head dimension {shape.head_dim}", hint="it takes 128")

    found = run_quality(
        dataclasses.replace(tiny.loaded("llama"), tokenizer=LetterTokenizer()),
        Roster([Candidate("choosy", Choosy()), Candidate("sdpa", Sdpa())]),
        COUNTS,
        dtype=torch.float32,
        device=CPU,
        seed=0,
        progress=lambda *_: None,
    )
    assert list(found.arms) == ["sdpa"]
    assert isinstance(found.failures["choosy"], Unsupported)


def test_the_tokens_that_were_decoded_are_hashed():
    first, again = (run(tiny.loaded("llama")).tokens_sha256 for _ in range(2))
    assert len(first) == 64
    assert first == again
    other = run_quality(
        dataclasses.replace(tiny.loaded("llama"), tokenizer=LetterTokenizer()),
        Roster([Candidate("sdpa", Sdpa())]),
        COUNTS,
        dtype=torch.float32,
        device=CPU,
        seed=1,
        progress=lambda *_: None,
    ).tokens_sha256
    assert other != first


def test_what_a_model_makes_of_a_text_is_its_own_cross_entropy():
    model = tiny.loaded("llama")
    ids = tiny.prompt(2, 30)
    own = model.module(ids).logits[:, :-1].log_softmax(-1)
    expected = -own.gather(-1, ids[:, 1:, None])[..., 0].detach()
    torch.testing.assert_close(text_nats(model, ids), expected, atol=1e-5, rtol=1e-5)


def test_weights_that_are_random_though_a_folder_holds_them_earn_no_verdict():
    found = run(tiny.loaded("llama"))
    verdict = judge(found.arms["sdpa"], "exact", "trained")
    assert (verdict.verdict, verdict.reason) == (Quality.NOT_EVALUATED, "text-not-predicted")
    for cause in ("random", "tokenizer"):
        assert cause in verdict.next_step
    assert verdict.bands == verdict.not_run == {}


def test_another_models_tokenizer_of_the_same_size_earns_no_verdict():
    model = load("embedded", torch.float32, CPU, seed=0)

    def permuted(text, add_special_tokens=False, verbose=False):
        ids = model.tokenizer(text, add_special_tokens=add_special_tokens, verbose=verbose)
        return {"input_ids": [(7 * id + 3) % model.info.vocab for id in ids["input_ids"]]}

    counts = QualityCounts(context=300, windows=3, steps=1, logit_steps=0)
    own, other = (
        judge(run(model, tokenizer, counts=counts).arms["sdpa"], "exact", "trained")
        for tokenizer in (model.tokenizer, permuted)
    )
    assert own.reason == "gates-not-run"
    assert own.figures["text_choices"] < own.figures["vocabulary"] / 5
    assert other.reason == "text-not-predicted"
    assert other.figures["text_perplexity"] > other.figures["vocabulary"]
