"""The adapter changes nothing: logits equal the library's own, prompt and decode."""

import pytest
import torch
from transformers import DynamicCache

from attnbench.models.adapter import ExactCache, attention_router
from attnbench.models.exact import ExactLayer
from attnbench.models.forced import teacher_forced
from attnbench.models.prefill import cache_argument, prefill
from attnbench.models.survey import survey
from tests.models.tiny import WORKING, loaded, prompt

TOKENS, STEPS, BATCH = 19, 5, 3
CPU = torch.device("cpu")


def own_logits(module, ids, implementation):
    """Logits of the last prompt token and of every decoded one, [STEPS + 1, B, vocab]."""
    module.set_attn_implementation(implementation)
    held = {cache_argument(type(module)): DynamicCache(config=module.config)}
    with torch.no_grad():
        logits = [module(ids[:, :TOKENS], **held).logits[:, -1]]
        for i in range(TOKENS, TOKENS + STEPS):
            logits.append(module(ids[:, i : i + 1], **held).logits[:, -1])
    return torch.stack(logits)


def routed_logits(model, ids, chunk):
    with attention_router(model.module) as router:
        surveyed = survey(model, router, BATCH, TOKENS + STEPS, torch.float32, CPU)
        cache = ExactCache([layer.shape for layer in surveyed])
        first = prefill(model, router, cache, ids[:, :TOKENS], chunk=chunk)
        layers = [ExactLayer(layer.shape, layer.window) for layer in surveyed]
        for layer, view in zip(layers, cache.views, strict=True):
            layer.prefill(view)
        decoded = list(teacher_forced(model, router, cache, layers, ids[:, TOKENS:]))
    return torch.stack([first, *decoded])


@pytest.mark.parametrize("chunk", [TOKENS, 8, 1], ids=["whole", "chunks-of-8", "one-by-one"])
@pytest.mark.parametrize("name", WORKING)
def test_logits_equal_the_librarys_own(name, chunk):
    model = loaded(name)
    ids = prompt(BATCH, TOKENS + STEPS)
    expected = own_logits(model.module, ids, "eager")
    assert expected.std() > 0.05, "logits this flat would agree with anything"
    torch.testing.assert_close(routed_logits(model, ids, chunk), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["llama", "mistral-sliding", "gemma3", "gpt2"])
def test_logits_equal_the_librarys_own_under_sdpa(name):
    model = loaded(name)
    ids = prompt(BATCH, TOKENS + STEPS)
    expected = own_logits(model.module, ids, "sdpa")
    torch.testing.assert_close(routed_logits(model, ids, 8), expected, atol=1e-4, rtol=0)
