"""Keeps what an arm's layers were given and returned in the last step, and looks at it afterwards.

In a captured step the tensors of the last replay lie where capture put them: holding on to them
costs memory and no time, and the graph is the same whether a step is looked at or not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from attnbench.methods.base import CacheView, LayerShape, MethodLayer


@dataclass(frozen=True)
class Tap:
    """One layer's last step: q [B,H,1,D], k and v [B,Hkv,1,D], out [B,H,1,D]."""

    q: Tensor
    k: Tensor
    v: Tensor
    out: Tensor

    def copied(self) -> Tap:
        """On the host, in memory of its own."""
        return Tap(*(host_copy(tensor) for tensor in (self.q, self.k, self.v, self.out)))


def copied(taps: Sequence[Tap]) -> tuple[Tap, ...]:
    """Copies on the host, fetched from the device at once."""
    host = iter(fetched([each for tap in taps for each in (tap.q, tap.k, tap.v, tap.out)]))
    return tuple(Tap(*fields) for fields in zip(host, host, host, host, strict=True))


def fetched(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Copies of tensors of one dtype on the host, in memory of their own, fetched at once."""
    if not tensors:
        return []
    flat = host_copy(torch.cat([Tensor.reshape(Tensor.detach(each), (-1,)) for each in tensors]))
    pieces = torch.split(flat, [each.numel() for each in tensors])
    return [piece.view(each.shape) for piece, each in zip(pieces, tensors, strict=True)]


def host_copy(tensor: Tensor) -> Tensor:
    """In memory of its own, whatever methods the tensor brings."""
    return Tensor.to(Tensor.detach(tensor), "cpu", copy=True)


@dataclass(frozen=True)
class WholeStep:
    """Tokens [B] that a whole step decoded, their places [B], and its logits [B, vocab], on the
    host."""

    tokens: Tensor
    places: Tensor
    logits: Tensor


@dataclass(frozen=True)
class KeptStep:
    """What the last timed step of a visit left behind: its full-attention layers, and in scope
    step the rest of it."""

    taps: tuple[Tap, ...]
    step: WholeStep | None


class TappedLayer(MethodLayer):
    """A layer that does what another one does and keeps the tensors of its last step."""

    last: Tap

    def __init__(self, layer: MethodLayer) -> None:
        self._layer = layer

    def prefill(self, cache: CacheView, q: Tensor | None = None) -> None:
        self._layer.prefill(cache, q)

    def decode(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = self._layer.decode(q, k, v)
        self.last = Tap(q, k, v, out)
        return out

    def reset(self) -> None:
        self._layer.reset()

    @property
    def maintains(self) -> bool:
        """Whether it does anything in `maintain`."""
        return type(self._layer).maintain is not MethodLayer.maintain

    def maintain(self) -> None:
        self._layer.maintain()

    def tensors(self) -> Iterator[Tensor]:
        return self._layer.tensors()

    def bytes_read(self) -> int:
        return self._layer.bytes_read()

    def witness(self) -> Mapping[str, float]:
        return self._layer.witness()


class Echo(MethodLayer):
    """Gives what attention gave before, whatever it is asked."""

    def __init__(self, given: Tensor) -> None:
        self._given = given

    def prefill(self, cache: CacheView, q: Tensor | None = None) -> None:
        del cache, q

    def decode(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        del k, v
        return self._given.to(q.device, q.dtype)

    def reset(self) -> None:
        return

    def tensors(self) -> Iterator[Tensor]:
        yield self._given

    def bytes_read(self) -> int:
        return self._given.nbytes

    def witness(self) -> Mapping[str, float]:
        return {}


def unlike(tap: Tap, shape: LayerShape, cache: CacheView) -> str:
    """What is wrong with the kind of an output, whatever it holds; empty where nothing is."""
    out = tap.out
    if type(out) is not Tensor or vars(out):
        return f"a {type(out).__name__} that is no plain tensor"
    expected = (shape.batch, shape.heads, 1, shape.head_dim)
    if tuple(out.shape) != expected or out.dtype != shape.dtype:
        return f"{tuple(out.shape)} of {out.dtype}, not {expected} of {shape.dtype}"
    if out.device != tap.q.device or out.layout is not torch.strided or out.is_quantized:
        return f"{out.layout} on {out.device}, not strided on {tap.q.device}"
    if any(stride == 0 < size - 1 for stride, size in zip(out.stride(), out.shape, strict=True)):
        return "one row shown as several: it was expanded, not computed"
    if out.requires_grad or out.is_conj() or out.is_neg():
        return "a tensor that is not computed yet: it carries a gradient, or a lazy conjugation"
    shared = {each.untyped_storage().data_ptr() for each in (tap.q, tap.k, tap.v, cache.k, cache.v)}
    if out.untyped_storage().data_ptr() in shared:
        return "a view of an input or of the cache, not a tensor of its own"
    return ""
