"""Where a model comes from: what a name means, and what each kind of failure tells the user."""

import hashlib
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers.utils import logging as progress

from attnbench.errors import NoSuchModel, UsageError
from attnbench.models.adapter import attention_router
from attnbench.models.info import beyond_positions, check_context
from attnbench.models.presets import PRESETS
from attnbench.models.sources import EMBEDDED_FOLDER, inspect, load
from attnbench.models.survey import survey
from tests.models.refusals import refusal
from tests.models.tiny import COMMON, WORKING, build, prompt

CPU = torch.device("cpu")


# --- local folders


def test_a_folder_gives_the_model_that_was_saved(folder):
    loaded = load(str(folder), torch.float32, CPU, seed=0)
    ids = prompt(2, 5)
    with torch.no_grad():
        assert torch.equal(loaded.module(ids).logits, build("llama", COMMON)(ids).logits)
    assert not loaded.module.training
    assert loaded.tokenizer("w7 w9").input_ids == [7, 9]


def test_facts_of_a_folder_are_those_of_its_files(folder):
    info = inspect(str(folder))
    assert info == load(str(folder), torch.float32, CPU, seed=0).info
    assert (info.kind, info.architecture, info.weights) == ("local", "LlamaForCausalLM", "trained")
    assert (info.layers, info.heads, info.kv_heads, info.head_dim) == (3, 4, 2, 8)
    assert (info.hidden, info.vocab, info.max_context) == (32, 61, 128)
    assert info.parameters == sum(p.numel() for p in build("llama", COMMON).parameters())
    weights = (folder / "model.safetensors").read_bytes()
    assert info.identity == hashlib.sha256(weights).hexdigest()


def test_tied_weights_are_counted_once(tmp_path):
    build("llama", {**COMMON, "tie_word_embeddings": True}).save_pretrained(tmp_path)
    untied = sum(p.numel() for p in build("llama", COMMON).parameters())
    assert inspect(str(tmp_path)).parameters == untied - 61 * 32


def test_a_local_model_has_the_name_of_its_folder_wherever_that_lies(folder, monkeypatch):
    monkeypatch.chdir(folder)
    assert {inspect(spec).name for spec in (str(folder), f"{folder}/", ".")} == {folder.name}
    assert inspect("preset:llama-3.2-1b").name == "preset:llama-3.2-1b"


def test_identity_of_shards_depends_on_every_shard(folder):
    model = build("llama", COMMON)
    shutil.rmtree(folder)
    model.save_pretrained(folder, max_shard_size="20KB")
    shards = sorted(folder.glob("*.safetensors"))
    assert len(shards) > 1
    before = inspect(str(folder)).identity
    tensors = load_file(shards[-1])
    next(iter(tensors.values()))[0] += 1
    save_file(tensors, shards[-1], metadata={"format": "pt"})
    assert inspect(str(folder)).identity != before
    shards[0].unlink()
    assert shards[0].name in refusal(str(folder))


def test_the_dtype_is_the_one_asked_for(folder):
    module = load(str(folder), torch.bfloat16, CPU, seed=0).module
    assert {p.dtype for p in module.parameters()} == {torch.bfloat16}


def test_weights_are_read_without_a_bar_and_others_may_draw_theirs_afterwards(folder, capfd):
    progress.enable_progress_bar()
    load(str(folder), torch.float32, CPU, seed=0)
    assert capfd.readouterr().err == ""
    assert progress.is_progress_bar_enabled()


def test_a_folder_without_a_tokenizer_gives_none(tmp_path):
    build("llama", COMMON).save_pretrained(tmp_path)
    assert load(str(tmp_path), torch.float32, CPU, seed=0).tokenizer is None


def test_a_folder_without_a_configuration_is_refused(folder):
    (folder / "config.json").unlink()
    assert "has no config.json" in refusal(str(folder))


def test_pickled_weights_are_refused(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert "only pickled weights (pytorch_model.bin)" in refusal(str(folder))


def test_a_folder_without_weights_is_refused(folder):
    (folder / "model.safetensors").unlink()
    assert "no .safetensors file" in refusal(str(folder))


def test_damaged_weights_are_refused(folder):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert "cannot be read" in refusal(str(folder))


def test_missing_weights_are_not_made_up(folder):
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    text = refusal(str(folder))
    assert "lacks 1 weights" in text
    assert "model.layers.1.mlp.up_proj.weight" in text


def test_weights_of_another_shape_are_refused(folder):
    edit(folder, intermediate_size=40)
    assert "cannot be read" in refusal(str(folder))


def test_a_damaged_configuration_is_refused(folder):
    (folder / "config.json").write_text("{")
    assert "describes no model" in refusal(str(folder))


def test_an_architecture_that_transformers_does_not_know_is_refused(folder):
    edit(folder, model_type="neverheardof")
    text = refusal(str(folder))
    assert "neverheardof" in text
    assert "\n" not in text
    assert "pip install" not in text


def test_code_that_comes_with_a_model_is_not_run(folder, tmp_path):
    ran = tmp_path / "ran"
    (folder / "own.py").write_text(f"open({str(ran)!r}, 'w')\n")
    edit(folder, model_type="mine", auto_map={"AutoConfig": "own.Config"})
    assert "own code are not run" in refusal(str(folder))
    assert not ran.exists()


def test_quantised_weights_are_refused(folder):
    edit(folder, quantization_config={"quant_method": "gptq", "bits": 4})
    assert "quantised" in refusal(str(folder))


@pytest.mark.parametrize(
    ("model_type", "settings", "expected"),
    [
        ("bloom", {"vocab_size": 61, "hidden_size": 32, "n_head": 4, "n_layer": 2}, "interface"),
        ("t5", {"vocab_size": 61}, "no causal language model"),
        ("deepseek_v3", {**COMMON, "kv_lora_rank": 8}, "latent"),
        ("lfm2", {**COMMON, "layer_types": ["conv"] * 3, "block_ff_dim": 48}, "conv"),
    ],
)
def test_unsupported_architectures_are_refused_before_their_weights_are_read(
    folder, model_type, settings, expected
):
    from transformers import AutoConfig

    AutoConfig.for_model(model_type, **settings).save_pretrained(folder)
    (folder / "model.safetensors").write_bytes(b"nothing")
    text = refusal(str(folder))
    assert expected in text
    assert "Model type should be one of" not in text


def edit(folder, **changes):
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))


# --- presets


def test_preset_facts_are_those_of_the_real_models():
    facts = {name: inspect(f"preset:{name}") for name in PRESETS}
    assert {name: info.parameters for name, info in facts.items()} == {
        "llama-3.2-1b": 1_235_814_400,
        "llama-3.1-8b": 8_030_261_248,
        "qwen3-0.6b": 596_049_920,
        "mistral-7b": 7_248_023_552,
    }
    assert {info.kv_heads for info in facts.values()} == {8}
    assert facts["qwen3-0.6b"].head_dim == 128
    assert {info.weights for info in facts.values()} == {"random"}
    assert len({info.identity for info in facts.values()}) == 4


def test_preset_weights_come_from_the_seed_and_leave_the_global_one_alone(monkeypatch):
    monkeypatch.setitem(PRESETS, "tiny", ("qwen3", {**COMMON, "head_dim": 8}))
    state = torch.get_rng_state()
    models = [load("preset:tiny", torch.bfloat16, CPU, seed) for seed in (1, 1, 2)]
    assert torch.equal(torch.get_rng_state(), state)
    first, again, other = (next(m.module.parameters()) for m in models)
    assert first.dtype == torch.bfloat16
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert models[0].tokenizer is None
    with attention_router(models[0].module) as router:
        assert len(survey(models[0], router, 1, 8, torch.bfloat16, CPU)) == 3


def test_an_unknown_preset_names_the_nearest():
    for spec, named in (("preset:llama3.2-1b", "preset:llama-3.2-1b"), ("preset:xyz", "preset:q")):
        with pytest.raises(UsageError) as error:
            inspect(spec)
        assert named in error.value.hint


# --- names that lead nowhere


def test_a_missing_file_and_a_missing_folder_are_refused():
    assert "there is no nowhere.gguf" in refusal("nowhere.gguf")
    assert "there is no ./nowhere" in refusal("./nowhere")
    assert "there is no /no/such/place" in refusal("/no/such/place")


@pytest.mark.parametrize("spec", ["", " ", "embeded", "Embedded", "nowhere.gguf", "./nowhere"])
def test_a_name_that_is_no_models_is_a_usage_error(spec):
    with pytest.raises(NoSuchModel) as error:
        inspect(spec)
    assert error.value.exit_code == 2
    assert error.value.hint
    assert ("did you mean embedded?" in error.value.message) is (spec.lower()[:3] == "emb")


def test_a_file_of_another_kind_is_refused(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert "neither a folder nor a .gguf file" in refusal(str(tmp_path / "model.safetensors"))


def test_a_package_without_the_embedded_weights_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr("attnbench.models.sources.EMBEDDED_FOLDER", tmp_path)
    assert "not part of this installation" in refusal("embedded")
    assert EMBEDDED_FOLDER.parent.name == "models"


# --- contexts


def test_a_context_beyond_the_model_names_the_largest(tmp_path):
    build("llama", COMMON).save_pretrained(tmp_path)
    info = inspect(str(tmp_path))
    check_context(info, 128)
    assert "128 positions" in beyond_positions(info, 128)
    assert beyond_positions(info, 127) == ""
    with pytest.raises(UsageError) as error:
        check_context(info, 129)
    assert "128" in error.value.hint
    with pytest.raises(UsageError):
        check_context(info, 0)


def test_learned_positions_must_cover_the_decoded_tokens_too(tmp_path):
    build(*WORKING["gpt2"]).save_pretrained(tmp_path)
    info = inspect(str(tmp_path))
    assert not info.rotary
    check_context(info, 127)
    for tokens, steps in ((128, 1), (120, 9)):
        with pytest.raises(UsageError):
            check_context(info, tokens, steps)
