"""Steps captured in CUDA graphs compute what the eager steps compute."""

import pytest
import torch

from attnbench.errors import Unsupported
from attnbench.methods.registry import parse
from attnbench.models.compiled import compiled_model
from attnbench.models.step import AttentionStep, CapturedStep, DecodeStep, build_layers
from attnbench.models.tables import qkv_tables, token_table
from tests.models.bench import TOKENS, bench
from tests.models.tiny import prompt

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]
METHODS = ["sdpa", "sdpa_repeat_kv", "eager_repeat_kv", "flash_decode", "int8_kv", "zero_cost"]


def step_of(b, method, table, compiled=None):
    layers = build_layers(parse(method).resolved(torch.device("cuda")), b.cache, b.surveyed)
    return DecodeStep(b.model, b.router, b.cache, layers, token_table(table, TOKENS), compiled)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["llama-biased", "qwen3", "gemma3"])
def test_captured_logits_equal_eager_logits_and_every_replay_sees_a_fresh_token(name, method):
    table = prompt(3, 2, seed=1).cuda()
    with bench(name, device="cuda", dtype=torch.bfloat16) as b:
        eager = step_of(b, method, table)
        expected = [eager().clone() for _ in range(3)]
        eager.reset()
        captured = CapturedStep(step_of(b, method, table))
        for i in range(7):
            torch.testing.assert_close(captured(), expected[i % 3], atol=0.05, rtol=0.02)
        captured.reset()
        torch.testing.assert_close(captured(), expected[0], atol=0.05, rtol=0.02)
    assert (expected[0] - expected[1]).abs().max() > 0.2


@pytest.mark.parametrize("name", ["llama-biased", "qwen3", "gemma3"])
def test_compiled_and_captured_logits_equal_eager_logits_with_fewer_kernels(name):
    table = prompt(3, 2, seed=1).cuda()
    with bench(name, device="cuda", dtype=torch.bfloat16) as b:
        eager = {method: step_of(b, method, table) for method in METHODS}
        expected = {method: [step().clone() for _ in range(3)] for method, step in eager.items()}
        plain = CapturedStep(step_of(b, "sdpa", table))
        with compiled_model(b.model.module) as compiled:
            compiled.seal(step_of(b, "sdpa", table, compiled))
            for method in METHODS:
                captured = CapturedStep(step_of(b, method, table, compiled))
                for i in range(5):
                    logits = captured()
                    torch.testing.assert_close(logits, expected[method][i % 3], atol=0.1, rtol=0.02)
            captured = CapturedStep(step_of(b, "sdpa", table, compiled))
            assert 0 < len(captured.kernels()) < 0.75 * len(plain.kernels())


def test_captured_attention_equals_eager_attention():
    with bench("qwen3", device="cuda", dtype=torch.bfloat16) as b:
        layers = build_layers(parse("sdpa"), b.cache, b.surveyed)
        tables = qkv_tables(b.surveyed, steps=3, seed=4)
        eager = AttentionStep(layers, tables)
        expected = [torch.stack(eager()) for _ in range(3)]
        captured = CapturedStep(AttentionStep(layers, tables))
        for i in range(5):
            torch.testing.assert_close(torch.stack(captured()), expected[i % 3])


def test_prefill_in_chunks_equals_prefill_at_once_on_the_gpu():
    from attnbench.models.prefill import prefill

    for name in ("qwen3", "gemma3"):
        with bench(name, device="cuda") as b:
            ids = prompt(2, TOKENS).cuda()
            whole = prefill(b.model, b.router, b.cache, ids)
            pieces = prefill(b.model, b.router, b.cache, ids, chunk=5)
            torch.testing.assert_close(pieces, whole, atol=1e-3, rtol=1e-3)


def test_a_step_that_waits_for_the_device_cannot_be_captured():
    class Waiting:
        layers = ()

        def __call__(self):
            return torch.ones(1, device="cuda") * int(torch.ones(1, device="cuda").item())

        def reset(self):
            pass

    with pytest.raises(Unsupported, match="captured"):
        CapturedStep(Waiting())
    assert torch.ones(3, device="cuda").sum().item() == 3  # the GPU is still usable


def test_a_captured_step_names_each_kernel_as_often_as_a_replay_launches_it():
    from attnbench.kernels import spin

    class Launches:
        layers = ()

        def __init__(self):
            self.record = torch.zeros(spin.RECORD_SIZE, dtype=torch.int64, device="cuda")
            spin.calibrate(self.record)
            self.numbers = torch.ones(1000, device="cuda")

        def __call__(self):
            for _ in range(3):
                spin.spin(self.record, 100)
            return self.numbers.sin().cos()

        def reset(self):
            pass

    captured = CapturedStep(Launches())
    kernels = captured.kernels()
    assert captured.unnamed() == ""
    assert kernels == tuple(sorted(kernels))
    assert len(kernels) == 5
    assert kernels.count("spin_kernel") == 3
    assert sum("sin_kernel" in name for name in kernels) == 1
    assert sum("cos_kernel" in name for name in kernels) == 1
    captured()
    captured.reset()
    assert captured.kernels() == CapturedStep(Launches()).kernels() == kernels
