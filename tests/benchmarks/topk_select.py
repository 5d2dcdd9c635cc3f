"""How fast the exact top-K that does not sort is, beside PyTorch's top-K and its stable sort.

    python -m tests.benchmarks.topk_select [--rows 128 --tokens 32000 --coverage 0.15]

Each is captured in a CUDA graph of several calls on scores of their own, as layers have, and timed
by device events; the indices are compared first. The sort and PyTorch's top-K are timed with and
without bringing the indices into ascending int32, which the kernel always does. Not a result: one
process, no interval.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from torch import Tensor

from attnbench.kernels.topk_select import row_width, select_highest
from attnbench.methods.dcr_layers import sorted_out
from attnbench.methods.dcr_topk import DcrTopK
from tests.benchmarks.attention_bandwidth import replay_us

CALLS = 8  # a graph, each on scores of its own
Choice = Callable[[Tensor], object]


def main() -> None:
    """Print microseconds a call and the ratio to the kernel, for scores of 32 and of 16 bits."""
    options = parse_arguments()
    method = DcrTopK(coverage=options.coverage)
    count = method.kept(options.tokens)
    print(torch.cuda.get_device_name(), torch.__version__, vars(options), f"k={count}", flush=True)
    for dtype in (torch.float32, torch.bfloat16):
        print_times(dtype, options.rows, options.tokens, method)


def parse_arguments() -> argparse.Namespace:
    """The shape; the default is that of the source's hero cell: 4 sequences of 32 heads."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=128)
    parser.add_argument("--tokens", type=int, default=32000)
    parser.add_argument("--coverage", type=float, default=0.15)
    return parser.parse_args()


def print_times(dtype: torch.dtype, rows: int, tokens: int, method: DcrTopK) -> None:
    """One line a way to choose."""
    torch.manual_seed(0)
    scores = [torch.randn((rows, row_width(tokens)), device="cuda").to(dtype) for _ in range(CALLS)]
    length = torch.tensor([tokens - 1], dtype=torch.int32, device="cuda")
    count = method.kept(tokens)

    def select(row: Tensor) -> Tensor:
        return select_highest(row, length, method.budget, count)

    same = torch.equal(select(scores[0]), sorted_out(scores[0][:, :tokens], count))
    print(f"{dtype}: indices {'equal' if same else 'DIFFER from'} those of the stable sort")
    ways: dict[str, Choice] = {
        "this select": select,
        "torch.topk, unsorted": lambda row: row[:, :tokens].topk(count, dim=-1, sorted=False),
        "torch.topk, ascending indices": lambda row: ascending_topk(row[:, :tokens], count),
        "stable argsort, cut": lambda row: stably_cut(row[:, :tokens], count),
        "stable argsort, ascending": lambda row: sorted_out(row[:, :tokens], count),
    }
    ours = 0.0
    for name, way in ways.items():
        us = replay_us(lambda way=way: [way(row) for row in scores]) / CALLS
        ours = ours or us
        print(f"  {name:<32}{us:>9.2f} us{us / ours:>8.2f} x this select", flush=True)


def ascending_topk(scores: Tensor, count: int) -> Tensor:
    """PyTorch's top-K with the indices as the kernel leaves them; equals as they come."""
    return scores.topk(count, dim=-1, sorted=False).indices.sort(dim=-1).values.to(torch.int32)


def stably_cut(scores: Tensor, count: int) -> Tensor:
    """The `count` highest, in falling order."""
    return scores.argsort(dim=-1, descending=True, stable=True)[:, :count]


if __name__ == "__main__":
    main()
