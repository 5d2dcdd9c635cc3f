"""How near the attention kernels come to the memory's speed, for every launch configuration.

    python -m tests.benchmarks.attention_bandwidth [--batch 4 --kv-heads 8 --group 4 --head-dim 64
        --tokens 32768 --layers 16 --dtype bfloat16]

Captures one step of all layers' attention in a CUDA graph and prints microseconds a layer and the
bandwidth of the bytes that the method says it must read. Not a result: one process, no interval.
"""

from __future__ import annotations

import argparse
import gc
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch

from attnbench.errors import AttnbenchError
from attnbench.methods import registry
from attnbench.methods.base import CacheLength, CacheView, KernelConfig, LayerShape, Method

TRITON = ("flash_decode", "int8_kv,impl=triton", "sink_window,impl=triton")
WARMUP_REPLAYS, TIMED_REPLAYS = 3, 15


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    arm: str
    config: KernelConfig | None
    layer_us: float
    bytes_read: int

    def __str__(self) -> str:
        speed = self.bytes_read / self.layer_us / 1e6
        launch = "" if self.config is None else _launch(self.config)
        return f"{self.arm:<26}{launch:<34}{self.layer_us:>9.2f} us/layer{speed:>8.3f} TB/s"


def _launch(config: KernelConfig) -> str:
    return (
        f"block {config.block_n:<4}splits {config.splits:<4}"
        f"warps {config.num_warps} stages {config.num_stages}"
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
    print(f"{'torch.sum of the key caches':<60}", end="", flush=True)
    caches = filled_caches(shape, options.layers, options.tokens)
    print_sum_bandwidth(caches)
    for method, config in arms(shape):
        try:
            print(measured(method, replace(shape, kernel=config), caches), flush=True)
        except (AttnbenchError, RuntimeError) as error:
            reason = str(error).splitlines()[0][:200]
            launch = "" if config is None else _launch(config)
            print(f"{method.label:<26}{launch:<34}{type(error).__name__}: {reason}", flush=True)
        gc.collect()
        torch.cuda.empty_cache()


def parse_arguments() -> argparse.Namespace:
    """The shape; the default is that of Llama-3.2-1B with four sequences of 32768 tokens."""
    parser = argparse.ArgumentParser(description=__doc__)
    sizes = {"batch": 4, "kv_heads": 8, "group": 4, "head_dim": 64, "tokens": 32768, "layers": 16}
    for name, default in sizes.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=default)
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float16"))
    return parser.parse_args()


def arms(shape: LayerShape) -> Iterator[tuple[Method, KernelConfig | None]]:
    """The project's kernels with every configuration, then SDPA with every fast backend."""
    for spec in TRITON:
        method = registry.parse(spec)
        for config in method.configurations(shape):
            yield method, config
    for backend in ("auto", "flash", "cudnn"):
        yield registry.parse(f"sdpa,backend={backend}"), None
    yield registry.parse("sdpa_packed"), None
    yield registry.parse("zero_cost"), None


def filled_caches(shape: LayerShape, layers: int, tokens: int) -> list[CacheView]:
    """One cache a layer, random rows up to `tokens` and zeros after, on one length."""
    length = CacheLength(shape.device, tokens)
    rows = (shape.batch, shape.kv_heads, shape.capacity, shape.head_dim)

    def cache() -> torch.Tensor:
        filled = torch.randn(rows, dtype=shape.dtype, device=shape.device)
        filled[:, :, tokens:] = 0
        return filled

    return [CacheView(cache(), cache(), length) for _ in range(layers)]


def print_sum_bandwidth(caches: list[CacheView]) -> None:
    """What PyTorch's own reduction reaches over the same memory, as a point of reference."""
    microseconds = replay_us(lambda: [cache.k.sum() for cache in caches]) / len(caches)
    speed = caches[0].k.nbytes / microseconds / 1e6
    print(f"{microseconds:>9.2f} us/layer{speed:>8.3f} TB/s", flush=True)


def measured(method: Method, shape: LayerShape, caches: list[CacheView]) -> Row:
    """Capture one step of all layers and time its replays."""
    method.check(shape)
    layers = [method.layer(replace(shape, layer=index)) for index in range(len(caches))]
    for layer, cache in zip(layers, caches, strict=True):
        layer.prefill(cache)
    new = (shape.batch, shape.kv_heads, 1, shape.head_dim)
    q = torch.randn(
        (shape.batch, shape.heads, 1, shape.head_dim), dtype=shape.dtype, device=shape.device
    )
    k, v = (torch.randn(new, dtype=shape.dtype, device=shape.device) for _ in range(2))
    microseconds = replay_us(lambda: [layer.decode(q, k, v) for layer in layers]) / len(layers)
    row = Row(method.label, shape.kernel, microseconds, layers[0].bytes_read())
    for layer in layers:
        layer.reset()
    return row


def replay_us(step: Callable[[], object]) -> float:
    """Microseconds of one replay of `step` as a CUDA graph: the median of some."""
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        step()
        step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    times = sorted(timed_us(graph.replay) for _ in range(WARMUP_REPLAYS + TIMED_REPLAYS))
    return times[len(times) // 2]


def timed_us(call: Callable[[], None]) -> float:
    """Microseconds between device events around `call`."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    call()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) * 1000


if __name__ == "__main__":
    main()
