"""Where a method looks good that is none: made-up data, and a model whose weights are random.

The same candidates go through the local gate on both, so that their figures can stand beside those
on the trained model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM

from attnbench.methods.base import LayerShape
from attnbench.models.info import LoadedModel
from attnbench.quality.candidates import Progress, Roster
from attnbench.quality.capture import layer_traces, record_windows, routed
from attnbench.quality.levels import QualityCounts
from attnbench.quality.local import LocalGate
from attnbench.quality.replay import LayerTrace
from attnbench.quality.samples import GateArrays

MADE_UP, RANDOM_WEIGHTS = "made-up data", "random weights"
TOKENS, HEADS, KV_HEADS, HEAD_DIM, STEPS = 512, 8, 2, 64, 4
IMPORTANT, AMPLITUDE, NOISE = 0.15, 6.0, 0.3
TRACES = 2  # as many as the batch has sequences


def made_up_trace(
    seed: int, dtype: torch.dtype = torch.float32, device: torch.device | None = None
) -> LayerTrace:
    """The generator on which a static selection of keys (ABKV) was first judged, by its authors.

    In each KV head a share of the keys, and every query, are 6 u + .3 noise for one random unit u;
    all else is normal noise. The queries are aligned with what is important by construction.
    """
    generator = torch.Generator().manual_seed(seed)
    device = device or torch.device("cpu")
    rows = TOKENS + STEPS
    shape = LayerShape(
        batch=1,
        heads=HEADS,
        kv_heads=KV_HEADS,
        head_dim=HEAD_DIM,
        capacity=rows,
        dtype=dtype,
        device=device,
        layer=0,
        scale=HEAD_DIM**-0.5,
    )
    unit = torch.randn(KV_HEADS, 1, HEAD_DIM, generator=generator)
    unit = AMPLITUDE * unit / unit.norm(dim=-1, keepdim=True)
    k, v, near = torch.randn(3, KV_HEADS, rows, HEAD_DIM, generator=generator)
    count = int(IMPORTANT * TOKENS)
    k[:, :count] = unit + NOISE * near[:, :count]
    noise = torch.randn(STEPS, HEADS, HEAD_DIM, generator=generator)
    q = unit[:, 0].repeat_interleave(HEADS // KV_HEADS, 0) + NOISE * noise
    return LayerTrace(shape, TOKENS, *(each.to(device, dtype) for each in (q, k, v)))


def with_random_weights(loaded: LoadedModel, dtype: torch.dtype, seed: int) -> LoadedModel:
    """The same architecture, its weights drawn as before a training."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        build: Any = AutoModelForCausalLM.from_config
        module: nn.Module = build(loaded.module.config, dtype=dtype)
    device = next(loaded.module.parameters()).device
    info = replace(loaded.info, weights="random")
    return replace(loaded, module=module.to(device).eval(), info=info)


def made_up_arrays(
    loaded: LoadedModel,
    roster: Roster,
    windows: torch.Tensor,
    counts: QualityCounts,
    dtype: torch.dtype,
    device: torch.device,
    seed: int,
    progress: Progress,
) -> Mapping[str, dict[str, GateArrays]]:
    """Samples of the local gate by place and label; `windows` [W,N] are what the trained model
    read. A candidate that fails in one of the two has none there."""
    made_up = LocalGate(roster.again(), seed)
    for number in range(TRACES):
        made_up.add_window([made_up_trace(seed + number, dtype, device)], progress)
    untrained = LocalGate(roster.again(), seed)
    random = with_random_weights(loaded, dtype, seed)
    with routed(random, counts.context + counts.steps, dtype, device) as model:
        for ids in windows[:, None, : counts.context + counts.steps]:
            progress(f"prefill of {counts.context} tokens, random weights")
            record = record_windows(model, ids, counts.context)
            traces = layer_traces(model, record, counts.context, counts.steps)
            untrained.add_window(traces, progress)
    return {MADE_UP: made_up.arrays(), RANDOM_WEIGHTS: untrained.arrays()}
