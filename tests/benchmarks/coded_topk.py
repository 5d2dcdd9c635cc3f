"""Where the time of selection by coded keys goes, beside exact attention and an INT8 cache.

    python -m tests.benchmarks.coded_topk [--batch 4 --kv-heads 8 --group 4 --head-dim 64
        --tokens 32768 --layers 16 --dtype bfloat16]

Every launch configuration of the default, then other shares, bits and samples with the fastest one,
each as `attention_bandwidth` measures it: a step of all layers in a CUDA graph, microseconds a
layer. Queries and caches are noise. `share=0.002` is about what the scan takes alone, and
`share=1.0` what scan and attention to all rows do. Not a result: one process, no interval.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch

from attnbench.errors import AttnbenchError
from attnbench.methods import registry
from attnbench.methods.base import CacheView, KernelConfig, LayerShape, Method
from tests.benchmarks.attention_bandwidth import (
    Row,
    filled_caches,
    measured,
    parse_arguments,
)

DEFAULT = "coded_topk,dense=0,impl=triton"  # every layer as the selection
OTHERS = (
    "rows=int8",
    "rows=int8,share=0.15",
    "share=0.002",
    "share=0.05",
    "share=0.07",
    "share=0.15",
    "share=1.0",
    "sample=64",
    "sample=512",
    "bits=1",
    "bits=1,sample=512",
    "bits=4",
)


def main() -> None:
    """Print one row an arm and configuration, as they are measured."""
    options = parse_arguments()
    shape = LayerShape(
        batch=options.batch,
        heads=options.kv_heads * options.group,
        kv_heads=options.kv_heads,
        head_dim=options.head_dim,
        capacity=options.tokens + 128,
        dtype=getattr(torch, options.dtype),
        device=torch.device("cuda"),
        layer=0,
        scale=options.head_dim**-0.5,
    )
    print(torch.cuda.get_device_name(), torch.__version__, vars(options), flush=True)
    caches = filled_caches(shape, options.layers, options.tokens)
    for spec in ("flash_decode", "int8_kv,impl=triton", "zero_cost"):
        method = registry.parse(spec)
        timed(method, method.configurations(shape)[:2] or (None,), shape, caches)
    method = registry.parse(DEFAULT)
    best = timed(method, extended(method.configurations(shape), shape), shape, caches)
    for parameters in OTHERS:
        timed(registry.parse(f"{DEFAULT},{parameters}"), (best,), shape, caches)


def extended(offered: Sequence[KernelConfig], shape: LayerShape) -> Iterator[KernelConfig]:
    """What is on offer, then the first of it with other numbers of splits."""
    yield from offered
    for splits in (8, 12, 24, 32):
        if splits != offered[0].splits:
            yield replace(offered[0], splits=splits)


def timed(
    method: Method,
    configs: Sequence[KernelConfig | None] | Iterator[KernelConfig],
    shape: LayerShape,
    caches: list[CacheView],
) -> KernelConfig | None:
    """Print a row for each; returns the fastest."""
    rows: list[Row] = []
    for config in configs:
        began = time.monotonic()
        try:
            row = measured(method, replace(shape, kernel=config), caches)
            print(f"{row}   ({time.monotonic() - began:.0f} s)", flush=True)
            rows.append(row)
        except (AttnbenchError, RuntimeError) as error:
            print(
                f"{method.label} {config}: {type(error).__name__}: {str(error)[:200]}", flush=True
            )
        gc.collect()
        torch.cuda.empty_cache()
    return min(rows, key=lambda row: row.layer_us).config if rows else None


if __name__ == "__main__":
    main()
