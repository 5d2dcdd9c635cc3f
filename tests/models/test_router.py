"""The router is scoped: registry and configuration are as before, whatever happened inside."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from attnbench.errors import ModelError
from attnbench.models.adapter import ExactCache, Router, attention_router
from attnbench.models.prefill import cache_argument, prefill
from attnbench.models.survey import survey
from tests.models.bench import bench
from tests.models.tiny import COMMON, build, loaded, prompt

CPU = torch.device("cpu")


def registries():
    return set(ALL_ATTENTION_FUNCTIONS.keys()), set(ALL_MASK_ATTENTION_FUNCTIONS.keys())


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_registry_and_configuration_are_restored(implementation):
    model = loaded("gemma3")
    model.module.set_attn_implementation(implementation)
    before = registries()
    with attention_router(model.module) as router:
        assert model.module.config._attn_implementation == router.name
        survey(model, router, 1, 8, torch.float32, CPU)
        assert registries() != before
    assert registries() == before
    assert model.module.config._attn_implementation == implementation


def test_registry_and_configuration_are_restored_after_an_exception():
    model = loaded("llama")
    before = registries()
    with pytest.raises(ZeroDivisionError), attention_router(model.module):
        raise ZeroDivisionError
    assert registries() == before
    assert model.module.config._attn_implementation == "sdpa"


def test_mask_registry_is_restored_when_the_survey_refuses():
    model = loaded("llama")
    model.module.config.num_hidden_layers = 2  # the model will run two of its three layers
    model.module.model.layers[1].self_attn.layer_idx = 0
    before = registries()
    with attention_router(model.module) as router, pytest.raises(ModelError):
        survey(model, router, 1, 8, torch.float32, CPU)
    assert registries() == before


def test_every_sub_configuration_gets_its_own_implementation_back():
    text = {**COMMON, "head_dim": 16, "layer_types": ["full_attention"] * 3}
    config = AutoConfig.for_model("gemma3", text_config=text, vision_config={})
    config._attn_implementation = {"": "sdpa", "text_config": "eager", "vision_config": "sdpa"}
    with torch.device("meta"):
        module = AutoModelForCausalLM.from_config(config)
    parts = [config, config.text_config, config.vision_config]
    parts = [module.config, module.config.get_text_config(), *parts]
    before = [part._attn_implementation for part in parts]
    with attention_router(module) as router:
        assert module.config.get_text_config()._attn_implementation == router.name
    assert [part._attn_implementation for part in parts] == before
    assert "eager" in before


def test_two_models_can_be_routed_at_once():
    one, other = loaded("llama"), loaded("qwen3")
    with attention_router(one.module) as a, attention_router(other.module) as b:
        assert survey(one, a, 1, 8, torch.float32, CPU)[0].shape.head_dim == 8
        assert survey(other, b, 1, 8, torch.float32, CPU)[0].shape.head_dim == 64


def test_calling_the_model_before_selecting_a_mode_is_an_error():
    model = loaded("llama")
    with (
        attention_router(model.module),
        pytest.raises(ModelError, match="before the router"),
    ):
        model.module(prompt(1, 3))


def test_prefill_without_a_survey_is_an_error():
    model = loaded("mistral-sliding")
    with attention_router(model.module) as router:
        cache = ExactCache(
            [layer.shape for layer in survey(model, router, 1, 8, torch.float32, CPU)]
        )
    with attention_router(model.module) as router, pytest.raises(ModelError, match="survey"):
        prefill(model, router, cache, prompt(1, 4))


def test_the_name_avoids_words_that_transformers_looks_for():
    for _ in range(50):
        name = Router().name
        assert not any(word in name for word in ("sdpa", "flash", "flex", "/", ":", "|"))


@pytest.mark.parametrize("model_type", ["gptj", "bloom", "falcon"])
def test_models_that_are_not_on_the_interface_are_refused(model_type):
    settings = {"vocab_size": 61, "hidden_size": 32, "n_embd": 32, "n_head": 4, "n_layer": 2}
    settings |= {"num_attention_heads": 4, "num_hidden_layers": 2, "rotary_dim": 4}
    config = AutoConfig.for_model(model_type, **settings)
    with torch.device("meta"):
        module = AutoModelForCausalLM.from_config(config)
    if module._supports_attention_backend:
        pytest.skip(f"this transformers has put {model_type} on the interface")
    with pytest.raises(ModelError, match="interface"), attention_router(module):
        pass


def test_build_gives_the_same_weights_twice():
    first, second = build("llama", COMMON), build("llama", COMMON)
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_cache_goes_in_under_the_name_that_the_model_has_for_it(recwarn):
    class Before(torch.nn.Module):
        def forward(self, input_ids, past_key_values=None):
            return None

    class Now(torch.nn.Module):
        def forward(self, input_ids, cache=None):
            return None

    assert cache_argument(Before) == "past_key_values"
    assert cache_argument(Now) == "cache"
    with bench("llama"):
        assert not [w for w in recwarn if "past_key_values" in str(w.message)]
