"""The survey reads scale and window from the model, and refuses what it could not reproduce."""

import re

import pytest
import torch

from attnbench.errors import ModelError
from attnbench.models.adapter import attention_router
from attnbench.models.masks import MaskRecorder
from attnbench.models.survey import survey
from tests.models.tiny import COMMON, GEMMA, GPT2, MIXED, build, loaded, wrap

CPU = torch.device("cpu")


def surveyed(model, capacity=40, batch=2):
    with attention_router(model.module) as router:
        return survey(model, router, batch, capacity, torch.float32, CPU)


def refusal(model_type, settings, expected):
    refused(wrap(build(model_type, settings)), expected)


def refused(model, *expected):
    with pytest.raises(ModelError) as error:
        surveyed(model)
    text = f"{error.value.message} {error.value.hint}"
    assert all(re.search(pattern, text) for pattern in expected), text


def test_shape_of_a_grouped_query_model():
    layers = surveyed(loaded("llama"))
    assert [layer.shape.layer for layer in layers] == [0, 1, 2]
    shape = layers[0].shape
    assert (shape.batch, shape.heads, shape.kv_heads, shape.head_dim) == (2, 4, 2, 8)
    assert (shape.capacity, shape.dtype, shape.device) == (40, torch.float32, CPU)
    assert shape.scale == pytest.approx(8**-0.5)


def test_scale_is_what_the_layer_passes():
    assert {layer.shape.scale for layer in surveyed(loaded("granite"))} == {0.3}
    assert surveyed(loaded("gemma3"))[0].shape.scale == pytest.approx(5**-0.5)
    scales = [layer.shape.scale for layer in surveyed(loaded("gpt2-scaled-by-layer"))]
    assert scales == pytest.approx([8**-0.5 / (i + 1) for i in range(3)])


def test_windows_are_those_of_each_layer():
    assert [layer.window for layer in surveyed(loaded("gemma3"))] == [5, None, 5, None]
    assert [layer.window for layer in surveyed(loaded("mistral-sliding"))] == [7, 7, 7]
    assert [layer.window for layer in surveyed(loaded("mistral"))] == [None, None, None]


def test_a_window_that_no_position_reaches_is_full_attention():
    model = loaded("mistral-sliding")
    assert [layer.window for layer in surveyed(model, capacity=7)] == [None] * 3
    assert [layer.window for layer in surveyed(model, capacity=8)] == [7] * 3


def test_attention_sinks_as_parameters_are_refused():
    settings = {**COMMON, "head_dim": 8, "num_local_experts": 2, "num_experts_per_tok": 1}
    refusal("gpt_oss", {**settings, "layer_types": ["full_attention"] * 3}, "attention sinks")


def test_soft_capped_scores_are_refused():
    refusal(
        "gemma2", {**GEMMA, "layer_types": MIXED, "attn_logit_softcapping": 50.0}, "soft-capped"
    )


def test_latent_attention_is_refused():
    settings = {
        **COMMON,
        "num_key_value_heads": 4,
        "kv_lora_rank": 8,
        "q_lora_rank": 8,
        "qk_rope_head_dim": 4,
        "qk_nope_head_dim": 8,
        "v_head_dim": 8,
        "n_routed_experts": 2,
        "first_k_dense_replace": 3,
    }
    refusal("deepseek_v3", settings, "latent")


def test_latent_attention_is_refused_by_its_shapes_too(monkeypatch):
    monkeypatch.setattr("attnbench.models.survey.refuse_by_configuration", lambda config: None)
    test_latent_attention_is_refused()


def test_chunked_attention_is_refused():
    settings = {
        **COMMON,
        "head_dim": 8,
        "intermediate_size_mlp": 48,
        "num_local_experts": 2,
        "attention_chunk_size": 8,
        "attn_temperature_tuning": False,
    }
    refusal("llama4_text", {**settings, "layer_types": ["chunked_attention"] * 3}, "chunked")


def test_chunked_attention_is_refused_by_its_mask_too(monkeypatch):
    monkeypatch.setattr("attnbench.models.survey.refuse_by_configuration", lambda config: None)
    test_chunked_attention_is_refused()


def test_bidirectional_models_are_refused():
    refusal("bert", {**COMMON, "is_decoder": False}, "direction|causally")


def test_a_causal_model_told_to_look_both_ways_is_refused():
    refusal("llama", {**COMMON, "is_causal": False}, "both directions|causally")


def test_state_space_models_are_refused():
    settings = {"vocab_size": 61, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4}
    model = wrap_any(build("mamba", settings))
    with pytest.raises(ModelError), attention_router(model.module) as router:
        survey(model, router, 1, 8, torch.float32, CPU)


HYBRID = {
    **COMMON,
    "layer_types": ["conv", "full_attention", "conv"],
    "block_ff_dim": 48,
}


def test_hybrid_models_are_refused():
    refusal("lfm2", HYBRID, "conv")


def test_hybrid_models_are_refused_by_what_the_layers_do_too(monkeypatch):
    monkeypatch.setattr("attnbench.models.survey.refuse_by_configuration", lambda config: None)
    refusal("lfm2", HYBRID, "hybrid")


SHARED = {
    **GEMMA,
    "layer_types": MIXED,
    "num_kv_shared_layers": 2,
    "vocab_size_per_layer_input": 61,
    "hidden_size_per_layer_input": 8,
    "activation_sparsity_pattern": [0.0] * 4,
    "intermediate_size": [48] * 4,
}


def test_layers_that_share_keys_and_values_are_refused():
    refusal("gemma3n_text", SHARED, "shares")


def test_shared_keys_and_values_are_refused_by_what_the_layers_do_too(monkeypatch):
    monkeypatch.setattr("attnbench.models.survey.refuse_by_configuration", lambda config: None)
    refusal("gemma3n_text", SHARED, "plain key-value cache|another layer")


def test_an_argument_that_is_not_understood_is_refused():
    model = loaded("llama")
    attention = model.module.model.layers[1].self_attn
    forward = attention.forward
    attention.forward = lambda *args, **kwargs: forward(*args, **kwargs, temperature=2.0)
    refused(model, "layer 1 .* temperature")


def test_dropout_is_refused():
    model = wrap(build("llama", {**COMMON, "attention_dropout": 0.1}).train())
    refused(model, "drops attention out", "eval")


def test_a_layer_that_is_skipped_is_refused():
    model = wrap(build("gpt2", GPT2))
    model.module.config.n_layer = 4
    refused(model, "4 layers made 3 attention calls")


def test_a_mask_that_the_recorder_did_not_make_is_refused():
    with pytest.raises(ModelError, match="own attention mask"):
        MaskRecorder().window(torch.ones(1, 1, 1, 1, dtype=torch.bool), 8)


def wrap_any(module):
    """`wrap` for models without heads: only the architecture's name is asked for."""
    from attnbench.models.info import LoadedModel, ModelInfo

    info = ModelInfo("tiny", "local", type(module).__name__, 0, 0, 0, 0, 0, 0, 0, "random", 0, "")
    return LoadedModel(module, info, None)
