"""What a bias by distance costs in the project's kernels, beside SDPA without one.

    python -m tests.benchmarks.distance_attention [--part full decode --heads 1 --kv-heads 1
        --head-dim 64 --batch 1 --dtype float16 --lengths 1024 4096 16384 32768]

`full`: all queries of a sequence, forward, and forward with backward; SDPA with the bias as a table
of L by L stands beside it as far as the table fits. The defaults are the cell of CY-Sieve's own
measurements. `decode`: one query over the cache, the recurrence in registers included. Captured in
CUDA graphs, timed by device events; outputs are compared first. Not a result: one process, no
interval.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from attnbench.errors import AttnbenchError
from attnbench.methods import registry
from attnbench.methods.base import CacheLength, CacheView, LayerShape
from attnbench.methods.conformance_scheme import Rows
from attnbench.methods.distance_method import full_mask
from attnbench.methods.scheme import SchemeConfig
from attnbench.methods.trial import Step
from tests.benchmarks.attention_bandwidth import replay_us

BIASED = (
    "nope",
    "alibi",
    "alibi,learn=true",
    "sliding_window,window=128",
    "cy_bias,tau=128",
    "cy_bias",
    "cy_bias,mode=holo,curvature=free",
    "cy_bias,tau=128,least_weight=0.01",
)
RECURRED = ("cy_bias,tau=128,tail=exact",)
RECURRED_AT_MOST = 8192  # tokens: a step of the recurrence follows the one before
LARGEST_TABLE_BYTES = 8 << 30


@dataclass(frozen=True)
class Cell:
    """What all arms of one length share."""

    options: argparse.Namespace
    tokens: int

    @property
    def dtype(self) -> torch.dtype:
        """By name."""
        found = getattr(torch, self.options.dtype)
        assert isinstance(found, torch.dtype)
        return found

    @property
    def config(self) -> SchemeConfig:
        """One layer."""
        o = self.options
        width = o.heads * o.head_dim
        return SchemeConfig(
            1, o.heads, o.kv_heads, o.head_dim, width, self.tokens, torch.device("cuda")
        )

    def line(self, arm: str, what: str, us: float, base_us: float) -> None:
        """One row of the table."""
        ratio = us / base_us if base_us else 1.0
        print(f"{self.tokens:>7} {arm:<38}{what:<20}{us:>11.2f} us{ratio:>9.3f} x", flush=True)


def main() -> None:
    """Print microseconds a call, and the ratio to SDPA of the same kind."""
    options = parse_arguments()
    print(torch.cuda.get_device_name(), torch.__version__, vars(options), flush=True)
    for tokens in options.lengths:
        cell = Cell(options, tokens)
        if "full" in options.part:
            print_full(cell)
        if "decode" in options.part:
            print_decode(cell)


def parse_arguments() -> argparse.Namespace:
    """The cell."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", nargs="+", default=["full", "decode"])
    parser.add_argument("--heads", type=int, default=1)
    parser.add_argument("--kv-heads", type=int, default=1)
    parser.add_argument("--head-dim", type=int, default=64)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--dtype", default="float16")
    parser.add_argument("--lengths", type=int, nargs="+", default=[1024, 4096, 16384, 32768])
    return parser.parse_args()


def print_full(cell: Cell) -> None:
    """SDPA, SDPA with a table, and the kernels, forward and with gradients."""
    config, options = cell.config, cell.options
    rows = Rows.drawn(config, cell.tokens, cell.dtype, batch=options.batch)
    gqa = options.heads != options.kv_heads

    def dense(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=gqa)

    bases = dict(timed(dense, rows))
    for what, us in bases.items():
        cell.line("sdpa, causal", what, us, us)
    method = registry.parse("cy_bias,tau=128,impl=triton")
    if options.heads * cell.tokens**2 * cell.dtype.itemsize <= LARGEST_TABLE_BYTES:
        table = full_mask(
            method.untrained(options.heads, config.device), cell.tokens, config.device
        )
        narrow = table.to(cell.dtype)[None]
        del table

        def tabled(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return scaled_dot_product_attention(q, k, v, attn_mask=narrow, enable_gqa=gqa)

        attention = method.scheme(config).attend(0)
        apart = (attention(*rows.all()) - tabled(*rows.all())).abs().max()
        print(f"{cell.tokens:>7} greatest difference of the kernel from the table: {apart:.2g}")
        for what, us in timed(tabled, rows):
            cell.line("sdpa, cy_bias,tau=128 as a table", what, us, bases[what])
        del narrow
    for spec in BIASED:
        attention = registry.parse(f"{spec},impl=triton").scheme(config).attend(0)
        for what, us in timed(attention, rows):
            cell.line(spec, what, us, bases[what])


def timed(attend: Callable[..., Tensor], rows: Rows) -> list[tuple[str, float]]:
    """Microseconds of a forward pass, and of one with gradients."""
    with torch.no_grad():
        forward_us = replay_us(lambda: attend(*rows.all()))
    asked = Rows(*(x.clone().requires_grad_() for x in rows.all()))
    weight = torch.randn_like(rows.q)
    learned = list(attend.parameters()) if isinstance(attend, torch.nn.Module) else []

    def both() -> object:
        out = attend(*asked.all())
        return torch.autograd.grad(out, (*asked.all(), *learned), weight)

    return [("forward", forward_us), ("forward, backward", replay_us(both))]


def print_decode(cell: Cell) -> None:
    """The strongest exact arm, SDPA and the kernels."""
    o = cell.options
    shape = LayerShape(
        o.batch, o.heads, o.kv_heads, o.head_dim, cell.tokens + 64, cell.dtype,
        torch.device("cuda"), 0, o.head_dim**-0.5,
    )  # fmt: skip
    rows = Rows.drawn(cell.config, 1, cell.dtype, batch=o.batch)
    step = Step(*rows.all())
    size = (o.batch, o.kv_heads, shape.capacity, o.head_dim)
    k, v = (torch.randn(size, device="cuda").to(cell.dtype) for _ in range(2))
    k[:, :, cell.tokens :] = 0
    v[:, :, cell.tokens :] = 0
    cache = CacheView(k, v, CacheLength(shape.device, cell.tokens))
    recurred = RECURRED if cell.tokens <= RECURRED_AT_MOST else ()
    base_us = 0.0
    for spec in ("flash_decode", "sdpa", *(f"{s},impl=triton" for s in (*BIASED, *recurred))):
        try:
            layer = registry.parse(spec).layer(shape)
            layer.prefill(cache)
            us = replay_us(lambda layer=layer: layer.decode(step.q, step.k, step.v))
        except (AttnbenchError, RuntimeError) as error:
            print(f"{cell.tokens:>7} {spec:<38}{type(error).__name__}: {error}", flush=True)
            continue
        base_us = base_us or us
        cell.line(spec, "decode", us, base_us)
        layer.reset()


if __name__ == "__main__":
    main()
