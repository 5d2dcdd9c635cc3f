"""Mode compiled on a CPU: the same logits, one graph for all layers and arms, all put back."""

import pytest
import torch

from attnbench.errors import Unsupported
from attnbench.methods.registry import parse
from attnbench.models.compiled import compiled_model
from attnbench.models.opaque import NUMBER
from attnbench.models.siblings import Sibling, merged_siblings
from attnbench.models.step import DecodeStep, build_layers
from attnbench.models.tables import token_table
from tests.models.bench import TOKENS, bench
from tests.models.tiny import COMMON, build, prompt

ARMS = ["sdpa", "int8_kv,impl=torch", "zero_cost"]


@pytest.fixture(autouse=True)
def _nothing_compiled():
    torch._dynamo.reset()


def step_of(b, method, compiled=None, batch=2):
    layers = build_layers(parse(method), b.cache, b.surveyed)
    table = token_table(prompt(5, batch, seed=1), TOKENS)
    return DecodeStep(b.model, b.router, b.cache, layers, table, compiled)


def three_steps(step):
    logits = [step().clone() for _ in range(3)]
    step.reset()
    return torch.stack(logits)


@pytest.mark.parametrize(
    ("name", "graphs"), [("llama", 3), ("llama-biased", 3), ("gemma3", 5), ("gpt2", 1)]
)
def test_every_arm_has_its_own_logits_from_the_same_few_graphs(name, graphs):
    with bench(name) as b:
        eager = {arm: three_steps(step_of(b, arm)) for arm in ARMS}
        with compiled_model(b.model.module) as compiled:
            compiled.seal(step_of(b, "sdpa", compiled))
            b.cache.reset(b.cache.length.tokens)
            found = {arm: three_steps(step_of(b, arm, compiled)) for arm in ARMS}
        assert compiled.graphs == graphs
        for arm in ARMS:
            torch.testing.assert_close(found[arm], eager[arm], atol=1e-4, rtol=0)
        assert (eager["sdpa"] - eager["zero_cost"]).abs().max() > 0.05


def test_afterwards_the_model_is_what_it_was():
    with bench("llama") as b:
        kinds = [type(part) for part in b.model.module.modules()]
        before = three_steps(step_of(b, "sdpa"))
        with compiled_model(b.model.module) as compiled:
            compiled.seal(step_of(b, "sdpa", compiled))
            b.cache.reset(b.cache.length.tokens)
            assert any(isinstance(part, Sibling) for part in b.model.module.modules())
            between = three_steps(step_of(b, "sdpa"))
        assert [type(part) for part in b.model.module.modules()] == kinds
        assert not any(hasattr(part, NUMBER) for part in b.model.module.modules())
        assert all(part._compiled_call_impl is None for part in b.model.module.modules())
        assert torch.equal(before, between)
        assert torch.equal(before, three_steps(step_of(b, "sdpa")))


def test_what_would_be_compiled_again_is_refused():
    with bench("llama") as b, compiled_model(b.model.module) as compiled:
        compiled.seal(step_of(b, "sdpa", compiled))
        for layer in b.model.module.get_decoder().layers:
            layer.input_layernorm.variance_epsilon = 0.5
        with pytest.raises(Unsupported, match="compiled again"):
            step_of(b, "sdpa", compiled)()


def test_a_model_that_cannot_be_compiled_is_refused_with_a_mode_that_runs_it(monkeypatch):
    with bench("llama") as b:
        norm = b.model.module.get_decoder().norm
        monkeypatch.setattr(type(norm), "forward", lambda self, x: x if bool(x.sum() > 0) else -x)
        with (
            compiled_model(b.model.module) as compiled,
            pytest.raises(Unsupported, match="cannot be compiled") as refusal,
        ):
            compiled.seal(step_of(b, "sdpa", compiled))
        assert "--mode graph" in refusal.value.hint


def test_siblings_keep_their_weights_and_are_one_product_when_compiled():
    module = build("qwen2", COMMON)  # query, key and value have biases, gate and up have none
    x = torch.randn(2, 1, 32)
    attention = module.model.layers[0].self_attn
    names = ("q_proj", "k_proj", "v_proj")
    apart = [getattr(attention, name)(x) for name in names]
    weights = {name: p.clone() for name, p in module.named_parameters()}
    with merged_siblings(module) as merged:
        assert merged == 2 * len(module.model.layers)
        assert all(torch.equal(p, weights[name]) for name, p in module.named_parameters())
        whole = attention.q_proj.weights
        assert whole.shape == (32 + 16 + 16, 32)
        for name, expected in zip(names, apart, strict=True):
            sibling = getattr(attention, name)
            assert torch.equal(sibling(x), expected)
            rows = whole[sibling.start : sibling.stop]
            assert rows.data_ptr() == sibling.weight.data_ptr()
            assert torch.equal(rows, sibling.weight)
    assert type(attention.q_proj) is torch.nn.Linear
    assert torch.equal(attention.q_proj(x), apart[0])


def test_projections_that_are_not_alike_are_left_alone():
    module = build("llama", COMMON)
    for layer in module.model.layers:
        layer.self_attn.k_proj = torch.nn.Linear(32, 16, bias=True)
        layer.mlp.up_proj = torch.nn.Linear(32, 48, bias=False, dtype=torch.float64)
    with merged_siblings(module) as merged:
        assert merged == 0


def test_the_compiled_layer_computes_the_common_product_once():
    from torch._inductor.utils import run_and_get_code

    with bench("llama") as b, compiled_model(b.model.module) as compiled:
        _, sources = run_and_get_code(step_of(b, "sdpa", compiled))
    products = [source.count("extern_kernels.mm(") for source in sources]
    # Query, key and value; output; gate and up; down.
    assert sorted(products) == [0, 0, 4]


def test_layers_are_compiled_for_one_shape_after_another_however_few_are_kept():
    with torch._dynamo.config.patch(recompile_limit=1):
        for batch in (2, 3, 4):
            with bench("llama", batch) as b, compiled_model(b.model.module) as compiled:
                compiled.seal(step_of(b, "sdpa", compiled, batch=batch))
                assert compiled.graphs == 3
