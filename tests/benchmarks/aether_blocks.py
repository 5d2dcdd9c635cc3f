"""Where the time of attention to chosen blocks goes, beside exact attention.

    python -m tests.benchmarks.aether_blocks [--batch 4 --kv-heads 8 --group 4 --head-dim 64
        --tokens 32000 --layers 16 --dtype bfloat16]

Of each arm a step of all layers in a CUDA graph, over caches that together exceed the L2 cache, as
`attention_bandwidth` measures it: bounds and choice alone, attention to what was chosen alone, and
both, in microseconds a layer; the share of tokens that a KV group reads, and the bandwidth of the
bytes that the method says it read. Queries and caches are noise, in which the heads of a group
choose unlike blocks: the share is what counts, not the parameter. Not a result: one process, no
interval.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from attnbench.errors import AttnbenchError
from attnbench.kernels.choose_blocks import choose_blocks
from attnbench.kernels.kept_decode import kept_decode
from attnbench.methods import registry
from attnbench.methods.base import CacheView, KernelConfig, LayerShape
from attnbench.methods.trial import Step
from tests.benchmarks.attention_bandwidth import (
    filled_caches,
    measured,
    parse_arguments,
    replay_us,
)

BESIDE = ("flash_decode", "zero_cost", "coded_topk,dense=0,impl=triton")
SCALED = "aether,variant=scaled,threshold=share,impl=triton"
TUNED = f"{SCALED},value=0.04"
ARMS = (
    f"{SCALED},value=0.002",  # about what the choice takes
    f"{SCALED},value=0.01",
    f"{SCALED},value=0.15",
    f"{SCALED},value=1.0",
    "aether,value=80.0,impl=triton",
    "aether,variant=scaled,threshold=relative,value=0.95,impl=triton",
    "aether,variant=scaled,threshold=mass,value=0.02,impl=triton",
    "aether,variant=trt,threshold=share,value=0.04,impl=triton",
    "aether,variant=scaled,block=32,threshold=share,value=0.04,impl=triton",
    "aether,variant=scaled,block=128,threshold=share,value=0.04,impl=triton",
    "quest,share=0.04,dense_layers=0,impl=triton",
    "quest,share=0.04,page=64,dense_layers=0,impl=triton",
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
    caches = filled_caches(shape, options.layers, options.tokens - 1)
    step = drawn(shape)
    for spec in BESIDE:
        print(measured(registry.parse(spec), shape, caches), flush=True)
    configs = registry.parse(TUNED).configurations(shape)
    best = min(configs, key=lambda config: printed(TUNED, config, shape, caches, step))
    for spec in ARMS:
        printed(spec, best, shape, caches, step)


def drawn(shape: LayerShape) -> Step:
    """One token of noise."""

    def noise(heads: int) -> Tensor:
        size = (shape.batch, heads, 1, shape.head_dim)
        return torch.randn(size, dtype=shape.dtype, device=shape.device)

    return Step(noise(shape.heads), noise(shape.kv_heads), noise(shape.kv_heads))


def printed(
    spec: str, config: KernelConfig, shape: LayerShape, caches: list[CacheView], step: Step
) -> float:
    """Print one row; returns microseconds of a whole step, a layer."""
    try:
        return row(spec, config, shape, caches, step)
    except (AttnbenchError, RuntimeError) as error:
        print(f"{spec} {config}: {type(error).__name__}: {str(error)[:200]}", flush=True)
        return float("inf")
    finally:
        gc.collect()
        torch.cuda.empty_cache()


def row(
    spec: str, config: KernelConfig, shape: LayerShape, caches: list[CacheView], step: Step
) -> float:
    """The three times of one arm."""
    layers = [
        registry.parse(spec).layer(replace(shape, layer=index, kernel=config))
        for index in range(len(caches))
    ]
    for layer, cache in zip(layers, caches, strict=True):
        layer.prefill(cache)

    def of_all(do: Callable[..., object]) -> float:
        return replay_us(lambda: [do(layer) for layer in layers]) / len(layers)

    whole = of_all(lambda layer: layer.decode(step.q, step.k, step.v))
    choice = of_all(lambda layer: choose(layer, step))
    attention = of_all(lambda layer: attend(layer, step))
    said = layers[0].witness()
    read = said.get("blocks_read", said.get("pages_read", 0.0))
    share = read / said.get("blocks", said.get("pages", 1.0))
    speed = layers[0].bytes_read() / whole / 1e3
    print(
        f"{spec.removesuffix(',impl=triton'):<58}tile {config.block_n:<4}splits {config.splits:<4}"
        f"warps {config.num_warps} stages {config.num_stages}  read {share:6.1%}  "
        f"choice {choice:6.2f}  attention {attention:6.2f}  step {whole:6.2f} us/layer  "
        f"{speed:6.0f} GB/s",
        flush=True,
    )
    for layer in layers:
        layer.reset()
    return whole


def choose(layer, step: Step) -> None:
    """The first launch of a step."""
    kernels, cache = layer.kernels, layer.cache
    ends = (layer.least, layer.greatest) if "least" in vars(layer) else layer.store.levels[0]
    choose_blocks(
        step.q,
        step.k,
        step.v,
        cache.k,
        cache.v,
        tuple(ends),
        cache.length.tensor,
        kernels.choice,
        rule=kernels.rule,
        scale=layer.shape.scale,
    )


def attend(layer, step: Step) -> Tensor:
    """The second."""
    kernels, cache = layer.kernels, layer.cache
    return kept_decode(
        step.q,
        cache.k,
        cache.v,
        kernels.choice,
        cache.length.tensor,
        kernels.work,
        block=kernels.rule.block,
        own=kernels.own,
        scale=layer.shape.scale,
        block_n=kernels.config.block_n,
        num_warps=kernels.config.num_warps,
        num_stages=kernels.config.num_stages,
    )


if __name__ == "__main__":
    main()
