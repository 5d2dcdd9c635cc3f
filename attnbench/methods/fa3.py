"""FlashAttention-3 with a KV cache (Shah et al. 2024, arXiv 2407.08608)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from attnbench.errors import Unsupported
from attnbench.methods.base import Family, LayerShape, Method, MethodLayer
from attnbench.methods.first_call import require_first_call
from attnbench.methods.kvcache_layer import Append, KvCacheLayer
from attnbench.methods.packages import Package
from attnbench.methods.reference import exact_attention

PACKAGE = Package(
    ("fa3_fwd_interface", "flash_attn_interface"), install="pip install 'attnbench[fa3]'"
)
CAPABILITIES = (8, 9)  # major numbers of the GPUs that it is built for


@dataclass(frozen=True)
class Fa3(Method):
    """Split-KV decode of FlashAttention-3, grouped-query native, on views of the exact cache.

    `append` is fused (one call writes the row and attends, the lengths lie on the device) or before
    (the row is written first, the length is a shape). `num_splits` 0 leaves the number of splits to
    the library. The wheel fa3-fwd has no kernels for float16.
    """

    append: Append = "fused"
    num_splits: int = 0

    name: ClassVar[str] = "fa3"
    family: ClassVar[Family] = Family.EXACT
    source: ClassVar[str] = "https://github.com/Dao-AILab/flash-attention/tree/main/hopper"

    @classmethod
    def variants(cls, device_type: str) -> tuple[Self, ...]:
        """Both ways to append, on a GPU."""
        return (cls(), cls(append="before")) if device_type == "cuda" else ()

    def reference(self, q: Tensor, k: Tensor, v: Tensor, shape: LayerShape) -> Tensor:
        """Exact attention."""
        return exact_attention(q, k, v, shape.scale)

    def check_machine(self, device: torch.device) -> None:
        """A CUDA GPU and the package."""
        PACKAGE.require(self.name, device)

    def check(self, shape: LayerShape) -> None:
        """What the machine must have, a GPU that it is built for, and one step that runs."""
        self.check_machine(shape.device)
        major, minor = torch.cuda.get_device_capability(shape.device)
        if major not in CAPABILITIES:
            raise Unsupported(
                f"{self.name} is not built for compute capability {major}.{minor}",
                hint="it runs on Ampere, Ada and Hopper",
            )
        require_first_call(self, shape)

    def layer(self, shape: LayerShape) -> MethodLayer:
        """A layer that calls the library on views of the exact cache."""
        attend = PACKAGE.load().flash_attn_with_kvcache
        return KvCacheLayer(shape, attend, self.append, {"num_splits": self.num_splits})
