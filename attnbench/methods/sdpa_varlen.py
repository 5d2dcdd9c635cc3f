"""PyTorch's variable-length attention over sequences packed one behind the other."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from attnbench.errors import Unsupported
from attnbench.methods.base import CacheView, Family, LayerShape, Method, MethodLayer
from attnbench.methods.first_call import require_first_call
from attnbench.methods.packages import Package
from attnbench.methods.reference import exact_attention

PACKAGE = Package(("torch.nn.attention.varlen",), install="PyTorch 2.10 or later has it")


@dataclass(frozen=True)
class SdpaVarlen(Method):
    """`torch.nn.attention.varlen.varlen_attn`: rows [tokens, heads, D] of all sequences.

    The exact cache is not laid out so: this keeps a cache of its own, as large as the exact one,
    with no row to spare. A step writes the new row into it in two small copies.
    """

    name: ClassVar[str] = "sdpa_varlen"
    family: ClassVar[Family] = Family.EXACT
    source: ClassVar[str] = "torch.nn.attention.varlen.varlen_attn"

    @classmethod
    def variants(cls, device_type: str) -> tuple[Self, ...]:
        """On a GPU: PyTorch has no such kernel for a CPU."""
        return (cls(),) if device_type == "cuda" else ()

    def reference(self, q: Tensor, k: Tensor, v: Tensor, shape: LayerShape) -> Tensor:
        """Exact attention."""
        return exact_attention(q, k, v, shape.scale)

    def check_machine(self, device: torch.device) -> None:
        """A CUDA GPU and a PyTorch that has it."""
        PACKAGE.require(self.name, device)

    def check(self, shape: LayerShape) -> None:
        """What the machine must have, 16 bits, and one step that runs."""
        self.check_machine(shape.device)
        if shape.dtype not in (torch.float16, torch.bfloat16):
            raise Unsupported(
                f"{self.name} does not run in {shape.dtype}", hint="use float16 or bfloat16"
            )
        require_first_call(self, shape)

    def layer(self, shape: LayerShape) -> MethodLayer:
        """A layer that keeps its cache packed."""
        return PackedLayer(shape, grouped(PACKAGE.load().varlen_attn, shape.group))


def grouped(attend: Callable[..., Any], group: int) -> Callable[..., Any]:
    """`varlen_attn` for groups of query heads: later versions want to be told, earlier ones see
    it from the shapes."""
    if group == 1 or "enable_gqa" not in inspect.signature(attend).parameters:
        return attend
    return lambda *tensors, **options: attend(*tensors, enable_gqa=True, **options)


class PackedLayer(MethodLayer):
    """Keys and values [B * rows, Hkv, D], `rows` being the tokens that the next step attends to."""

    def __init__(self, shape: LayerShape, attend: Callable[..., Any]) -> None:
        self.shape = shape
        self.attend = attend

    def prefill(self, cache: CacheView, q: Tensor | None = None) -> None:
        """Copy the cached rows, with room for the next one."""
        del q
        self.length = cache.length
        self.prefilled = cache.length.tokens
        self.k = self.v = torch.empty(0)
        self.make_room(cache.k, cache.v, self.prefilled)

    def make_room(self, k: Tensor, v: Tensor, tokens: int) -> None:
        """Lay out `tokens` rows of k and v [B,Hkv,N,D] anew, and one row of zeros."""
        batch, rows = self.shape.batch, tokens + 1
        self.k, self.v = (packed(each, tokens) for each in (k, v))
        self.rows = rows
        numbers = torch.arange(batch + 1, dtype=torch.int32, device=self.shape.device)
        self.query_starts, self.key_starts = numbers, numbers * rows

    def by_head(self, packed_rows: Tensor) -> Tensor:
        """Packed rows as [B,Hkv,rows,D]."""
        shape = self.shape
        return packed_rows.view(shape.batch, -1, shape.kv_heads, shape.head_dim).transpose(1, 2)

    def decode(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Write the new row, then attend to all rows."""
        row = self.length.tokens
        if self.rows != row + 1:
            self.make_room(self.by_head(self.k), self.by_head(self.v), row)
        for rows, new in ((self.k, k), (self.v, v)):
            self.by_head(rows)[:, :, row].copy_(new[:, :, 0])
        out: Tensor = self.attend(
            q[:, :, 0],
            self.k,
            self.v,
            self.query_starts,
            self.key_starts,
            1,
            self.rows,
            scale=self.shape.scale,
        )
        return out.reshape(q.shape)

    def reset(self) -> None:
        """Back to the prefilled rows and one of zeros, in place unless rows were appended."""
        if self.rows != self.prefilled + 1:
            self.make_room(self.by_head(self.k), self.by_head(self.v), self.prefilled)
        for rows in (self.k, self.v):
            self.by_head(rows)[:, :, self.prefilled :].zero_()

    def tensors(self) -> Iterator[Tensor]:
        """Its own cache, and where sequences begin."""
        yield from (self.k, self.v, self.query_starts, self.key_starts)

    def bytes_read(self) -> int:
        """Keys and values of all tokens, the newest among them."""
        return (self.length.tokens + 1) * self.shape.row_bytes

    def witness(self) -> Mapping[str, float]:
        """All tokens are attended."""
        return {"kept_share": 1.0, "attended_tokens": float(self.length.tokens + 1)}


def packed(rows: Tensor, tokens: int) -> Tensor:
    """The first `tokens` rows of [B,Hkv,N,D], and one of zeros, as [B * (tokens + 1), Hkv, D]."""
    batch, kv_heads, _, head_dim = rows.shape
    laid = rows.new_zeros(batch, tokens + 1, kv_heads, head_dim)
    held = min(tokens, rows.shape[2])
    laid[:, :held].copy_(rows[:, :, :held].transpose(1, 2))
    return laid.view(-1, kv_heads, head_dim)
