"""The exact top-K that does not sort, against a stable sort."""

from __future__ import annotations

from unittest.mock import patch

import pytest
import torch
import triton
import triton.language as tl

from attnbench.kernels import topk_select
from attnbench.kernels.topk_select import _kept, row_width, select_highest
from attnbench.methods.dcr_topk import DcrTopK

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
NAN, INF = float("nan"), float("inf")


def selected(scores: torch.Tensor, count: int) -> torch.Tensor:
    """The kernel's choice, of rows that are followed by what is no number; it writes no more."""
    rows, tokens = scores.shape
    padded = scores.new_full((rows, row_width(tokens)), NAN)
    padded[:, :tokens] = scores
    length = torch.tensor([tokens - 1], dtype=torch.int32, device=DEVICE)
    unwritten = torch.full((rows, count + 2), -1, dtype=torch.int32, device=DEVICE)
    with patch.object(torch, "empty", return_value=unwritten):
        found = select_highest(padded.to(DEVICE), length, (0, 1, count, 1), count + 2)
    assert (found[:, count:] == -1).all()
    return found[:, :count].cpu()


def by_sorting(scores: torch.Tensor, count: int) -> torch.Tensor:
    """The first of a stable sort by falling score, ascending."""
    order = scores.argsort(dim=-1, descending=True, stable=True)
    return order[:, :count].sort(dim=-1).values.int()


def drawn(tokens: int, levels: int, dtype: torch.dtype) -> torch.Tensor:
    """Two rows of normal noise, or of whole numbers around zero of which many are equal."""
    generator = torch.Generator().manual_seed(tokens)
    if levels:
        return torch.randint(-levels, levels, (2, tokens), generator=generator).to(dtype)
    return torch.randn((2, tokens), generator=generator).to(dtype)


@pytest.fixture(params=["held", "long"])
def way(request, monkeypatch):
    """Rows held at once, and rows that are read digit by digit, a few tokens at a time."""
    if request.param == "long":
        monkeypatch.setattr(topk_select, "HELD", 0)
        monkeypatch.setattr(topk_select, "WRITTEN", 64)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize(
    ("tokens", "count", "levels", "dtype"),
    [
        (1, 1, 0, torch.float32),
        (31, 1, 0, torch.float16),
        (33, 33, 3, torch.float32),
        (64, 20, 0, torch.float16),
        (127, 40, 2, torch.float32),
        (127, 126, 0, torch.float32),
        (300, 45, 4, torch.float16),
    ],
)
def test_the_highest_are_chosen_in_order_and_of_equals_the_first(tokens, count, levels, dtype):
    scores = drawn(tokens, levels, dtype)
    assert torch.equal(selected(scores, count), by_sorting(scores, count))


def test_a_long_row_of_both_kinds_is_chosen_from():
    for levels, dtype in ((0, torch.float32), (9, torch.float16)):
        scores = drawn(4096, levels, dtype)
        assert torch.equal(selected(scores, 615), by_sorting(scores, 615))


@pytest.mark.usefixtures("way")
def test_of_equal_scores_alone_the_first_are_chosen():
    scores = torch.full((1, 100), -2.5)
    assert selected(scores, 37).tolist() == [list(range(37))]


@pytest.mark.usefixtures("way")
def test_what_is_no_number_is_highest_zeros_are_equal_and_infinities_are_in_order():
    row = torch.tensor([-INF, 0.0, -0.0, 1.0, NAN, INF, -1.0, -NAN, 0.0, 1e-40, -1e-40])
    falling = [4, 7, 5, 3, 9, 1, 2, 8, 10, 6, 0]
    for count in (1, 2, 4, 7, 11):
        assert selected(row[None], count).tolist() == [sorted(falling[:count])]


@pytest.mark.skipif(DEVICE.type != "cuda", reason="the interpreter computes bfloat16 wrongly")
@pytest.mark.gpu
def test_sixteen_bits_of_bfloat16_are_enough():
    for levels in (0, 3):
        scores = drawn(1000, levels, torch.bfloat16)
        assert torch.equal(selected(scores, 150), by_sorting(scores, 150))


@triton.jit
def _kept_of_each(
    out, N: tl.constexpr, D: tl.constexpr, LEAST: tl.constexpr, M: tl.constexpr, SIZE: tl.constexpr
):
    tokens = tl.arange(0, SIZE)
    tl.store(out + tokens, _kept(tokens, N, D, LEAST, M))


@pytest.mark.parametrize(("coverage", "k_min"), [(0.15, 64), (0.3, 7), (0.29, 1), (1.0, 64)])
def test_the_device_keeps_as_many_tokens_as_the_method_says(coverage, k_min):
    method = DcrTopK(coverage=coverage, k_min=k_min)
    out = torch.zeros(1024, dtype=torch.int32, device=DEVICE)
    _kept_of_each[(1,)](out, *method.budget, SIZE=1024)
    assert out.tolist() == [method.kept(tokens) for tokens in range(1024)]


def test_rows_that_wide_loads_would_overrun_are_refused():
    length = torch.zeros(1, dtype=torch.int32)
    for scores in (torch.zeros(2, 100), torch.zeros(2, 64)[:, :32]):
        with pytest.raises(ValueError, match="multiple of 16"):
            select_highest(scores, length, (0, 1, 1, 1), 1)
