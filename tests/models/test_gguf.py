"""A .gguf file becomes a model with its weights and tokenizer, and is converted once."""

import hashlib
import struct

import numpy as np
import pytest
import torch

from attnbench.errors import ModelError
from attnbench.models import gguf as gguf_source
from attnbench.models.cached import cache_root
from attnbench.models.sources import inspect, load
from tests.models.tiny import COMMON, build, prompt

gguf = pytest.importorskip("gguf", reason="needs the extra gguf")
pytest.importorskip("accelerate", reason="needs the extra gguf")
CPU = torch.device("cpu")
# Where a Llama's weights stand in a GGUF file.
NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("ATTNBENCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "gguf"


@pytest.fixture
def model():
    return build("llama", COMMON)


@pytest.fixture
def path(model, tmp_path):
    return write(tmp_path / "tiny.gguf", model)


def write(path, model, architecture="llama", tensors=True):
    writer = gguf.GGUFWriter(path, architecture)
    config = model.config
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(8)
    writer.add_vocab_size(config.vocab_size)
    words = [*(chr(ord("!") + i) for i in range(config.vocab_size - 2)), "01", "23"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(words)
    writer.add_token_types([1] * len(words))
    writer.add_token_merges(["0 1", "2 3"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    for name, weight in model.state_dict().items() if tensors else ():
        writer.add_tensor(gguf_name(name), gguf_weight(name, weight, config))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def gguf_name(name):
    tops = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    stem = name.removesuffix(".weight")
    if stem in tops:
        return f"{tops[stem]}.weight"
    _, _, layer, part = stem.split(".", 3)
    return f"blk.{layer}.{NAMES[part]}.weight"


def gguf_weight(name, weight, config):
    """GGUF interleaves the two halves that rotate together."""
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for part, count in heads.items():
        if part in name:
            weight = weight.view(count, 2, -1, weight.shape[1]).swapaxes(1, 2)
            weight = weight.reshape(-1, weight.shape[-1])
    return np.ascontiguousarray(weight.numpy())


def test_a_gguf_file_gives_the_model_that_was_written(path, model):
    loaded = load(str(path), torch.float32, CPU, seed=0)
    ids = prompt(2, 9)
    with torch.no_grad():
        torch.testing.assert_close(loaded.module(ids).logits, model(ids).logits)
    assert loaded.tokenizer("0123").input_ids[-2:] == [59, 60]
    assert loaded.info.identity == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (loaded.info.kind, loaded.info.weights) == ("gguf", "trained")
    assert inspect(str(path)) == loaded.info


def test_it_is_converted_once_for_each_dtype(path, cache, monkeypatch):
    first = load(str(path), torch.float32, CPU, seed=0)
    load(str(path), torch.bfloat16, CPU, seed=0)
    identity = first.info.identity
    assert {folder.name for folder in cache.iterdir()} == {
        f"{identity}-float32",
        f"{identity}-bfloat16",
    }
    monkeypatch.setattr(gguf_source.GgufSource, "_read", None)
    monkeypatch.setattr(gguf_source.GgufSource, "_config", None)
    again = load(str(path), torch.float32, CPU, seed=0)
    assert torch.equal(next(again.module.parameters()), next(first.module.parameters()))
    assert inspect(str(path)) == first.info


def test_another_file_under_the_same_name_is_converted_anew(path, model):
    first = load(str(path), torch.float32, CPU, seed=0)
    with torch.no_grad():
        model.lm_head.weight.add_(1)
    path.unlink()
    write(path, model)
    second = load(str(path), torch.float32, CPU, seed=0)
    assert first.info.identity != second.info.identity
    assert not torch.equal(first.module.lm_head.weight, second.module.lm_head.weight)


def test_a_conversion_that_fails_leaves_nothing_behind(path, cache, monkeypatch):
    def fail(*args, **kwargs):
        raise OSError("no space left")

    monkeypatch.setattr("transformers.PreTrainedModel.save_pretrained", fail)
    assert "ATTNBENCH_CACHE" in refusal(path)
    assert list(cache.iterdir()) == []


def test_a_process_that_was_slower_takes_what_the_other_made(path, cache, monkeypatch):
    publish = gguf_source._publish

    def late(whole, folder):
        (folder).mkdir()
        for file in whole.iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
        publish(whole, folder)

    monkeypatch.setattr(gguf_source, "_publish", late)
    load(str(path), torch.float32, CPU, seed=0)
    assert len(list(cache.iterdir())) == 1


def refusal(path):
    with pytest.raises(ModelError) as error:
        load(str(path), torch.float32, CPU, seed=0)
    return f"{error.value.message} | {error.value.hint}"


@pytest.mark.parametrize("package", ["gguf", "accelerate"])
def test_without_the_extra_the_command_to_install_it_is_named(path, monkeypatch, package):
    find = gguf_source.importlib.util.find_spec
    monkeypatch.setattr(
        gguf_source.importlib.util,
        "find_spec",
        lambda name: None if name == package else find(name),
    )
    text = refusal(path)
    assert f"needs {package}" in text
    assert "pip install 'attnbench[gguf]'" in text


def test_a_vocabulary_without_weights_is_refused(model, tmp_path):
    assert "no weights" in refusal(write(tmp_path / "vocab.gguf", model, tensors=False))


def test_a_file_that_is_no_gguf_is_refused(tmp_path):
    for content in (b"", b"GGUF", b"PK" + bytes(40)):
        path = tmp_path / "other.gguf"
        path.write_bytes(content)
        assert "is not a GGUF file" in refusal(path)


def test_a_damaged_file_is_refused(path, tmp_path):
    whole = path.read_bytes()
    for name, content in {
        "short.gguf": whole[: len(whole) // 2],
        "header.gguf": struct.pack("<4sIQQ", b"GGUF", 3, 5, 5),
    }.items():
        (tmp_path / name).write_bytes(content)
        assert "cannot be read as a model" in refusal(tmp_path / name)


def test_an_architecture_that_transformers_cannot_read_is_refused(model, tmp_path):
    assert "cannot be read" in refusal(write(tmp_path / "x.gguf", model, architecture="rwkv7"))


def test_the_cache_lies_where_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.setenv("ATTNBENCH_CACHE", "/a")
    monkeypatch.setenv("XDG_CACHE_HOME", "/b")
    assert str(cache_root()) == "/a"
    monkeypatch.delenv("ATTNBENCH_CACHE")
    assert str(cache_root()) == "/b/attnbench"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_root() == tmp_path / ".cache" / "attnbench"
