"""The byte floor: the least device memory that a step must read, and how long that takes."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from attnbench.methods.base import MethodLayer


def weight_bytes(module: nn.Module, batch: int) -> int:
    """Bytes of the parameters of `module` that one decode step of `batch` sequences must read.

    Of an embedding only the looked-up rows are read, unless the output head is tied to it, which
    reads all of it. Experts of a mixture are left out, since no step need read any given one: the
    figure is a lower bound. Tied parameters count once.
    """
    head = getattr(module, "get_output_embeddings", lambda: None)()
    head_weight = None if head is None else head.weight
    looked_up = {
        part.weight
        for part in module.modules()
        if isinstance(part, nn.Embedding) and part.weight is not head_weight
    }
    total = 0
    for name, parameter in module.named_parameters():
        if parameter in looked_up:
            total += batch * parameter.shape[1] * parameter.itemsize
        elif ".experts." not in name:
            total += parameter.numel() * parameter.itemsize
    return total


def kv_bytes(layers: Iterable[MethodLayer]) -> int:
    """Bytes that these layers must read in one step."""
    return sum(layer.bytes_read() for layer in layers)
