from __future__ import annotations

import pytest
from torch import nn

from attnbench.measure.arms import BenchArm
from attnbench.measure.floor import weight_bytes
from attnbench.protocol.cell import Mode, Scope
from attnbench.protocol.result import read_ms
from tests.measure.standing import standing, with_arms
from tests.models.tiny import COMMON, GPT2, build

# Tiny Llama: hidden 32, MLP 48, 4 heads and 2 KV heads of dimension 8, 3 layers, 61 words.
LAYER = 32 * 32 + 2 * 32 * 16 + 32 * 32 + 3 * 32 * 48 + 2 * 32  # q, k and v, o, MLP, norms
BODY = 3 * LAYER + 32
TABLE = 61 * 32
KV_ROW = 2 * 2 * 2 * 8 * 4  # key and value, 2 sequences, 2 KV heads, dimension 8, float32


def test_of_an_untied_embedding_only_the_looked_up_rows_are_read():
    assert weight_bytes(build("llama", COMMON), batch=2) == 4 * (BODY + TABLE + 2 * 32)


def test_a_tied_embedding_is_read_once_and_whole_by_the_head():
    tied = build("llama", {**COMMON, "tie_word_embeddings": True})
    assert weight_bytes(tied, batch=2) == 4 * (BODY + TABLE)


def test_learned_positions_are_looked_up_too():
    module = build("gpt2", GPT2)
    positions = 128 * 32
    parameters = sum(parameter.numel() for parameter in module.parameters())
    assert weight_bytes(module, batch=3) == 4 * (parameters - positions + 3 * 32)


def test_experts_are_left_out_of_a_lower_bound():
    module = nn.Module()
    module.experts = nn.ModuleList([nn.Linear(8, 8, bias=False)])
    mixture = nn.Module()
    mixture.mlp, mixture.gate = module, nn.Linear(8, 4, bias=False)
    assert weight_bytes(mixture, batch=1) == 4 * 8 * 4


def test_a_step_reads_the_weights_and_every_row_up_to_the_new_one():
    with standing(with_arms("sdpa")) as bench:
        arm = BenchArm(bench, "sdpa", None, Scope.STEP, Mode.EAGER)
        weights = 4 * (BODY + TABLE + 2 * 32)
        assert arm.read_bytes() == weights + 3 * 25 * KV_ROW


def test_attention_alone_reads_no_weights():
    with standing(with_arms("sdpa")) as bench:
        arm = BenchArm(bench, "sdpa", None, Scope.ATTENTION, Mode.EAGER)
        assert arm.read_bytes() == 3 * 25 * KV_ROW


def test_sliding_layers_read_their_window_in_a_step_and_stand_aside_in_attention():
    with standing(with_arms("sdpa"), "gemma3") as bench:  # 2 of 4 layers slide over 5 tokens
        row = (
            2 * 2 * 2 * 64 * 4
        )  # bytes of a token: k and v, batch, KV heads, head dimension, float32
        step = BenchArm(bench, "sdpa", None, Scope.STEP, Mode.EAGER)
        attention = BenchArm(bench, "sdpa", None, Scope.ATTENTION, Mode.EAGER)
        assert step.read_bytes() - bench.weight_bytes == 2 * 25 * row + 2 * 5 * row
        assert attention.read_bytes() == 2 * 25 * row


def test_the_ceiling_reads_weights_only():
    with standing(with_arms("zero_cost")) as bench:
        arm = BenchArm(bench, "zero_cost", None, Scope.STEP, Mode.EAGER)
        assert arm.read_bytes() == bench.weight_bytes


def test_three_gigabytes_at_three_thousand_a_second_take_a_millisecond():
    assert read_ms(3 * 10**9, 3000.0) == pytest.approx(1.0)
