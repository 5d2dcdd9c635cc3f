"""FlashInfer's batch decode over a paged cache (Ye et al. 2025, arXiv 2501.01005)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from attnbench.errors import Unsupported
from attnbench.methods.base import CacheView, Family, LayerShape, Method, MethodLayer
from attnbench.methods.exact_cache import ExactCacheLayer
from attnbench.methods.first_call import require_first_call
from attnbench.methods.packages import Package
from attnbench.methods.reference import exact_attention

PACKAGE = Package(("flashinfer",), install="pip install 'attnbench[flashinfer]' (compiles at use)")
LARGEST_PAGE = 64  # tokens
# Room for the partial results of all splits, by query heads of a group and head dimension: about
# four times what 264 programs with 16 rows each take. A plan that needs more says so.
WORKSPACE_BYTES = 64 << 10
LEAST_WORKSPACE_BYTES = 16 << 20


@dataclass(frozen=True)
class FlashInfer(Method):
    """`BatchDecodeWithPagedKVCacheWrapper` over the exact cache, read as pages where it lies.

    A page is a stretch of rows of every KV head; the strides say where the heads are, so nothing is
    copied. Planned once for a length, outside the step, as an engine plans once for all layers.
    `tensor_cores` takes the kernel that packs a group's query heads into a tile.
    """

    tensor_cores: bool = True

    name: ClassVar[str] = "flashinfer"
    family: ClassVar[Family] = Family.EXACT
    source: ClassVar[str] = "https://github.com/flashinfer-ai/flashinfer"

    @classmethod
    def variants(cls, device_type: str) -> tuple[Self, ...]:
        """The kernel for groups, on a GPU: the other one is compiled for minutes as well."""
        return (cls(),) if device_type == "cuda" else ()

    def reference(self, q: Tensor, k: Tensor, v: Tensor, shape: LayerShape) -> Tensor:
        """Exact attention."""
        return exact_attention(q, k, v, shape.scale)

    def check_machine(self, device: torch.device) -> None:
        """A CUDA GPU and the package."""
        PACKAGE.require(self.name, device)

    def check(self, shape: LayerShape) -> None:
        """What the machine must have, 16 bits, and one step that compiles and runs."""
        self.check_machine(shape.device)
        if shape.dtype not in (torch.float16, torch.bfloat16):
            raise Unsupported(
                f"{self.name} does not run in {shape.dtype}", hint="use float16 or bfloat16"
            )
        require_first_call(self, shape)

    def layer(self, shape: LayerShape) -> MethodLayer:
        """A layer with a plan and workspaces of its own."""
        return FlashInferLayer(
            shape, PACKAGE.load().BatchDecodeWithPagedKVCacheWrapper, self.tensor_cores
        )


class FlashInferLayer(ExactCacheLayer):
    """Pages of the exact cache, and the plan for the length at hand."""

    def __init__(self, shape: LayerShape, wrapper: Callable[..., Any], tensor_cores: bool) -> None:
        super().__init__(shape)
        self.new_wrapper = wrapper
        self.tensor_cores = tensor_cores

    def prefill(self, cache: CacheView, q: Tensor | None = None) -> None:
        """Keep the view, cut it into pages, and plan the first step."""
        super().prefill(cache, q)
        self.page = page_rows(self.shape)
        self.pages = tuple(paged(rows, self.page) for rows in (cache.k, cache.v))
        batch, most = self.shape.batch, -(-self.shape.capacity // self.page)
        numbers = torch.zeros(batch * most, dtype=torch.int32, device=self.shape.device)
        self.wrapper = self.new_wrapper(
            torch.zeros(workspace_bytes(self.shape), dtype=torch.uint8, device=self.shape.device),
            "HND",
            use_cuda_graph=True,
            use_tensor_cores=self.tensor_cores,
            paged_kv_indptr_buffer=numbers.new_zeros(batch + 1),
            paged_kv_indices_buffer=numbers,
            paged_kv_last_page_len_buffer=numbers.new_zeros(batch),
        )
        self.plan(self.visible)

    def plan(self, rows: int) -> None:
        """Which pages hold the first `rows` rows of each sequence; on the host, never captured."""
        shape, count = self.shape, -(-rows // self.page)
        first = torch.arange(shape.batch, dtype=torch.int32) * (
            shape.kv_heads * shape.capacity // self.page
        )
        pages = first[:, None] + torch.arange(count, dtype=torch.int32)
        self.wrapper.plan(
            torch.arange(shape.batch + 1, dtype=torch.int32) * count,
            pages.flatten().to(shape.device),
            torch.full((shape.batch,), rows - (count - 1) * self.page, dtype=torch.int32),
            shape.heads,
            shape.kv_heads,
            shape.head_dim,
            self.page,
            q_data_type=shape.dtype,
            kv_data_type=shape.dtype,
            sm_scale=shape.scale,
        )
        self.planned = rows

    def decode(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Write the new row, then attend to the planned pages."""
        if self.planned != self.visible:
            self.plan(self.visible)
        self.append(k, v)
        out: Tensor = self.wrapper.run(q[:, :, 0], self.pages)
        return out.reshape(q.shape)

    def reset(self) -> None:
        """Zero the rows appended since prefill, and plan for the first step again."""
        super().reset()
        if self.planned != self.prefilled + 1:
            self.plan(self.prefilled + 1)

    def tensors(self) -> Iterator[Tensor]:
        """The exact cache, and the workspaces and the plan that the wrapper keeps."""
        yield from super().tensors()
        yield from (value for value in vars(self.wrapper).values() if isinstance(value, Tensor))


def workspace_bytes(shape: LayerShape) -> int:
    """The size of the wrapper's workspace for partial results."""
    return max(shape.group * shape.head_dim * WORKSPACE_BYTES, LEAST_WORKSPACE_BYTES)


def page_rows(shape: LayerShape) -> int:
    """The most rows, a power of two, of which every head has a whole number of pages."""
    return min(shape.capacity & -shape.capacity, LARGEST_PAGE)


def paged(rows: Tensor, page: int) -> Tensor:
    """A cache [B,Hkv,capacity,D] as pages [P,Hkv,page,D] that overlap in memory.

    Page p begins `page * p` rows after the first row of the first head, and head h of a page lies
    h times a head's rows further on; the pages of sequence b are those from b * Hkv * capacity /
    page on. Raises `Unsupported` where the cache is not contiguous.
    """
    if not rows.is_contiguous():
        raise Unsupported(
            f"a cache with strides {rows.stride()} cannot be read as pages",
            hint="lay it out as [batch, KV heads, capacity, head dimension]",
        )
    batch, kv_heads, capacity, head_dim = rows.shape
    count = (batch * kv_heads - (kv_heads - 1)) * capacity // page
    return rows.as_strided(
        (count, kv_heads, page, head_dim), (page * head_dim, capacity * head_dim, head_dim, 1)
    )
