"""A timed step: fixed length, a fresh token each time, nothing read on the host."""

from contextlib import contextmanager

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from attnbench.errors import DoesNotFit, Unsupported
from attnbench.methods.base import LayerShape
from attnbench.methods.registry import parse
from attnbench.models.exact import ExactLayer
from attnbench.models.forced import record_steps, teacher_forced
from attnbench.models.graph_nodes import KernelList
from attnbench.models.step import (
    AttentionStep,
    CapturedStep,
    DecodeStep,
    InTurnStep,
    build_layers,
)
from attnbench.models.tables import QKVTables, RowReader, captured_tables, qkv_tables, token_table
from tests.models.bench import TOKENS, bench
from tests.models.tiny import prompt

ARCHITECTURES = ["llama", "qwen3", "gemma3", "gpt2", "mistral-sliding", "phi3"]
EXACT = ["sdpa", "sdpa_repeat_kv", "eager_repeat_kv"]


def decode_step(b, method, table):
    layers = build_layers(parse(method), b.cache, b.surveyed)
    return DecodeStep(b.model, b.router, b.cache, layers, token_table(table, TOKENS))


def first_logits(b, token):
    """Logits of one token decoded after the prompt, by the growing path; leaves no trace."""
    layers = build_layers(parse("sdpa"), b.cache, b.surveyed)
    (logits,) = teacher_forced(b.model, b.router, b.cache, layers, token.view(-1, 1))
    b.cache.reset(TOKENS)
    return logits


@pytest.mark.parametrize("method", EXACT)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_step_decodes_the_tables_next_token_at_the_same_position(name, method):
    table = prompt(3, 2, seed=1)
    with bench(name) as b:
        expected = [first_logits(b, row) for row in table]
        step = decode_step(b, method, table)
        for i in range(7):
            torch.testing.assert_close(step(), expected[i % 3], atol=1e-4, rtol=0)
        assert b.cache.length.tokens == TOKENS
    assert (expected[0] - expected[1]).abs().max() > 0.05


def test_reset_goes_back_to_the_first_token_and_the_prefilled_cache():
    with bench("llama") as b:
        before = b.cache.sha256()
        step = decode_step(b, "sdpa", prompt(3, 2, seed=1))
        first = step()
        step()
        assert b.cache.sha256() != before
        step.reset()
        assert b.cache.sha256() == before
        assert torch.equal(step(), first)


def test_arms_that_take_turns_do_not_disturb_each_other():
    table = prompt(3, 2, seed=1)
    with bench("llama") as b:
        alone = decode_step(b, "sdpa", table)
        expected = [alone() for _ in range(3)]
        one, other = decode_step(b, "sdpa", table), decode_step(b, "uniform_mean", table)
        for i in range(3):
            assert (other() - expected[i]).abs().max() > 0.01
            assert torch.equal(one(), expected[i])


class HostReads(TorchDispatchMode):
    """Notes every operation that would wait for the device, or bring data from the host."""

    NAMES = ("_local_scalar_dense", "is_nonzero", "nonzero", "lift_fresh", "equal", "masked_select")

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.overloadpacket.__name__ in self.NAMES:
            self.seen.append(str(function))
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_step_reads_nothing_on_the_host_and_builds_no_mask(name):
    with bench(name) as b:
        step = decode_step(b, "sdpa", prompt(3, 2, seed=1))
        with HostReads() as reads:
            step()
        assert reads.seen == []
        masks = []
        decode = b.router._attend
        b.router.decode = lambda layers: None
        b.router._attend = lambda *call: masks.append(call[4]) or decode(*call)
        step()
        assert masks == [None] * len(b.surveyed)


def test_host_reads_are_noticed():
    with HostReads() as reads:
        int(torch.ones(1))
    assert reads.seen


def test_sliding_layers_stay_exact_in_every_arm():
    with bench("gemma3") as b:
        layers = build_layers(parse("zero_cost"), b.cache, b.surveyed)
        assert [isinstance(layer, ExactLayer) for layer in layers] == [True, False, True, False]
        assert layers[0].witness()["kept_share"] == 5 / (TOKENS + 1)
        assert layers[0].bytes_read() == 5 * b.surveyed[0].shape.row_bytes


def test_a_sliding_layer_sees_its_window_and_nothing_else():
    with bench("gemma3") as b:
        layer, view = build_layers(parse("sdpa"), b.cache, b.surveyed)[0], b.cache.views[0]
        q, k, v = qkv_inputs(b.surveyed[0].shape)
        before = layer.decode(q, k, v)
        view.k[:, :, : TOKENS - 4] = 9.0  # rows [TOKENS - 4, TOKENS] are the window of five
        assert torch.equal(layer.decode(q, k, v), before)
        view.v[:, :, TOKENS - 4] = 9.0
        assert not torch.equal(layer.decode(q, k, v), before)


def qkv_inputs(shape):
    generator = torch.Generator().manual_seed(0)
    widths = [shape.heads, shape.kv_heads, shape.kv_heads]
    return [torch.randn(shape.batch, h, 1, shape.head_dim, generator=generator) for h in widths]


@pytest.mark.parametrize("kind", [AttentionStep, InTurnStep])
def test_attention_step_gives_what_the_layers_give_on_the_same_rows(kind):
    with bench("gemma3") as b:
        layers = build_layers(parse("sdpa"), b.cache, b.surveyed)
        tables = qkv_tables(b.surveyed, steps=3, seed=4)
        assert [shape.layer for shape in tables.shapes] == [1, 3]
        step = kind(layers, tables)
        for i in range(4):
            inputs = tables.split(tables.rows[i % 3])
            expected = [layers[n].decode(*qkv) for n, qkv in zip((1, 3), inputs, strict=True)]
            for actual, wanted in zip(step(), expected, strict=True):
                torch.testing.assert_close(actual, wanted)


def test_attention_step_can_be_reset():
    with bench("llama") as b:
        before = b.cache.sha256()
        step = AttentionStep(
            build_layers(parse("sdpa"), b.cache, b.surveyed), qkv_tables(b.surveyed, 3, seed=4)
        )
        first, second = (torch.stack(step()) for _ in range(2))
        assert not torch.equal(first, second)
        step.reset()
        assert b.cache.sha256() == before
        assert torch.equal(torch.stack(step()), first)


def whole_row(q: Tensor) -> Tensor:
    """The inputs of all layers, where this query lies; the last word leads to the next row."""
    return torch.empty(0).set_(q.untyped_storage())[:-2]


def test_in_turn_the_inputs_of_later_layers_are_not_there_and_outputs_are_copies():
    with bench("llama") as b:
        layers = build_layers(parse("sdpa"), b.cache, b.surveyed)
        buffer, rows = torch.zeros(2), []
        for number, layer in enumerate(layers):
            layer.decode = lambda q, k, v, number=number: (
                rows.append(whole_row(q).clone()),
                buffer.fill_(number),
            )[1]
        outputs = InTurnStep(layers, qkv_tables(b.surveyed, 3, seed=4))()
        there = [row.count_nonzero().item() for row in rows]
        assert 0 < there[0] == there[1] - there[0] == there[2] - there[1]
        assert [out.tolist() for out in outputs] == [[n, n] for n in range(3)]


@pytest.mark.parametrize("kind", [AttentionStep, InTurnStep])
def test_inputs_that_a_layer_wrote_and_put_back_are_touched_where_layers_take_turns(kind):
    with bench("llama") as b:
        layers = build_layers(parse("sdpa"), b.cache, b.surveyed)
        step = kind(layers, qkv_tables(b.surveyed, 3, seed=4))
        step()
        assert step.inputs_untouched()
        layers[1].decode = lambda q, k, v: q.mul_(2).div_(2)
        step()
        assert step.inputs_untouched() == (kind is AttentionStep)


def test_a_model_whose_layers_all_slide_has_nothing_for_a_method():
    with bench("mistral-sliding") as b, pytest.raises(Unsupported, match="sliding window"):
        qkv_tables(b.surveyed, 3, seed=4)


class Operations(TorchDispatchMode):
    """Notes every operation that is no view."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if not function.is_view:
            self.seen.append(function.overloadpacket.__name__)
        return function(*args, **(kwargs or {}))


def test_an_attention_step_costs_two_operations_beside_its_layers():
    with bench("llama") as b:
        layers = build_layers(parse("sdpa"), b.cache, b.surveyed)
        for layer in layers:
            layer.decode = lambda q, k, v: q
        step = AttentionStep(layers, qkv_tables(b.surveyed, 3, seed=4))
        with Operations() as operations:
            step()
    assert operations.seen == ["index_select", "add_"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_of_any_width_come_back_bit_by_bit_in_turn(dtype):
    shape = LayerShape(1, 3, 1, 1, 8, dtype, torch.device("cpu"), 0, 1.0)
    rows = torch.randn(3, 5, generator=torch.Generator().manual_seed(0)).to(dtype)
    tables = QKVTables.pack(rows, (shape,))
    assert torch.equal(tables.rows, rows)
    reader = RowReader(tables.words)
    ((q, k, v),) = tables.split(reader.row)
    for i in (0, 1, 2, 0, 1):
        reader.advance()
        assert torch.equal(torch.cat([x.flatten() for x in (q, k, v)]), rows[i])
    reader.reset()
    reader.advance()
    assert q.flatten().tolist() == rows[0, :3].tolist()


def test_tables_depend_on_the_seed_alone():
    with bench("llama") as b:
        rows = [qkv_tables(b.surveyed, 3, seed=seed).rows for seed in (4, 4, 5)]
    assert torch.equal(rows[0], rows[1])
    assert not torch.equal(rows[0], rows[2])


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_recorded_steps_replayed_through_the_layers_give_the_models_outputs(name):
    ids = prompt(2, 4, seed=2)
    with bench(name) as b:
        layers = build_layers(parse("sdpa"), b.cache, b.surveyed)
        expected = torch.stack(list(teacher_forced(b.model, b.router, b.cache, layers, ids)))
        full = [layer.shape.layer for layer in b.surveyed if layer.window is None]
        rows = b.cache.views[full[-1]].k[:, :, TOKENS : TOKENS + 4].clone()
        b.cache.reset(TOKENS)
        record = record_steps(b.model, b.router, b.cache, b.surveyed, ids)
        assert torch.equal(record.logits, expected)
        assert list(record.layers) == full
        shape = b.surveyed[full[0]].shape
        assert record.q[0].shape == (4, 2, shape.heads, 1, shape.head_dim)
        assert record.v[0].shape == (4, 2, shape.kv_heads, 1, shape.head_dim)
        assert torch.equal(torch.cat(list(record.k[-1]), dim=2), rows)
        b.cache.reset(TOKENS)
        tables = captured_tables(b.surveyed, record.q, record.k, record.v)
        first = tables.split(tables.rows[2])[0]
        for actual, wanted in zip(first, (record.q, record.k, record.v), strict=True):
            assert torch.equal(actual, wanted[0][2])


def test_steps_beyond_the_caches_room_are_refused():
    with bench("llama") as b, pytest.raises(DoesNotFit, match="9 steps"):
        record_steps(b.model, b.router, b.cache, b.surveyed, prompt(2, 9))


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_a_graph_without_a_gpu_is_a_typed_error():
    with bench("llama") as b, pytest.raises(Unsupported):
        CapturedStep(decode_step(b, "sdpa", prompt(3, 2)))


class WrittenDown:
    """A step, and a CUDA graph of it, that only write down what is asked of them."""

    layers = ()

    def __init__(self):
        self.log = []

    def __call__(self):
        self.log.append("step")
        return ()

    def reset(self):
        self.log.append("reset")

    def instantiate(self):
        self.log.append("instantiate")

    def replay(self):
        self.log.append("replay")

    def raw_cuda_graph(self):
        return 0x7F0000001000

    @contextmanager
    def capture(self, graph, pool):
        self.log.append("capture")
        yield
        self.log.append("captured")


@pytest.fixture
def written_down(monkeypatch):
    step = WrittenDown()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 1))
    monkeypatch.setattr(torch.cuda, "graph", step.capture)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda keep_graph: step if keep_graph else None)
    monkeypatch.setattr("attnbench.models.step._warm_up", lambda step, steps: None)
    return step


def test_a_graph_is_ready_to_replay_before_its_first_step(written_down):
    CapturedStep(written_down)()
    assert written_down.log == [
        "reset", "capture", "step", "captured", "instantiate", "reset", "replay",
    ]  # fmt: skip


@pytest.mark.parametrize("told", [KernelList(names=("a", "b")), KernelList(unknown="no libcuda")])
def test_kernels_of_a_captured_step_or_why_there_are_none_can_be_asked_at_any_time(
    written_down, monkeypatch, told
):
    lists = {written_down.raw_cuda_graph(): told}
    monkeypatch.setattr("attnbench.models.step.kernel_list", lists.__getitem__)
    captured = CapturedStep(written_down)
    for _ in range(2):
        assert captured.kernels() == told.names
        assert captured.unnamed() == told.unknown
        captured()
