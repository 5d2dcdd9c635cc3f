"""Scaled dot-product attention of PyTorch, grouped-query native."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from attnbench.errors import Unsupported
from attnbench.methods.base import Family, LayerShape, Method, MethodLayer
from attnbench.methods.exact_cache import ExactCacheLayer
from attnbench.methods.packages import Package
from attnbench.methods.reference import exact_attention

Backend = Literal["auto", "math", "flash", "efficient", "cudnn", "fa3", "fa4"]
BACKENDS: dict[str, SDPBackend] = {
    "math": SDPBackend.MATH,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
}
# FlashAttention of another package, put in the place of PyTorch's own: its name there, where it is.
ACTIVATED: dict[str, tuple[str, Package]] = {
    "fa3": (
        "FA3",
        Package(("flash_attn_interface",), install="build hopper/ of Dao-AILab/flash-attention"),
    ),
    "fa4": (
        "FA4",
        Package(("flash_attn.cute.interface",), install="pip install flash-attn-4"),
    ),
}
# How PyTorch says that the backends it may use do not take a shape.
REFUSALS = ("No available kernel", "No viable backend")
# Enough rows for every backend to show whether it takes the shape, few enough to cost nothing.
TRIAL_TOKENS = 32


@dataclass(frozen=True)
class Sdpa(Method):
    """`scaled_dot_product_attention(..., enable_gqa=True)` over the cached rows and the new one.

    `auto` leaves the choice of a backend to PyTorch; any other name is that backend or an error.
    `fa3` and `fa4` put FlashAttention of another package in the place of PyTorch's own for the
    length of each call, since it would serve every other arm too. In a captured step that costs
    nothing; in mode eager some tenths of a millisecond a layer, which are not attention's.
    """

    backend: Backend = "auto"

    name: ClassVar[str] = "sdpa"
    family: ClassVar[Family] = Family.EXACT
    source: ClassVar[str] = "torch.nn.functional.scaled_dot_product_attention"

    @classmethod
    def variants(cls, device_type: str) -> tuple[Self, ...]:
        """PyTorch's own choice and every backend that this type of device may have."""
        cpu: tuple[Backend, ...] = ("auto", "math", "flash")
        cuda: tuple[Backend, ...] = ("auto", "math", "flash", "efficient", "cudnn")
        others: tuple[Backend, ...] = ("fa3", "fa4")
        cuda += tuple(name for name in others if ACTIVATED[name][1].present)
        return tuple(cls(backend=name) for name in (cuda if device_type == "cuda" else cpu))

    def reference(self, q: Tensor, k: Tensor, v: Tensor, shape: LayerShape) -> Tensor:
        """Exact attention."""
        return exact_attention(q, k, v, shape.scale)

    def layer(self, shape: LayerShape) -> MethodLayer:
        """A layer that calls SDPA on views of the exact cache."""
        return SdpaLayer(self, shape)

    def check_machine(self, device: torch.device) -> None:
        """The package that a backend is from, where it is not PyTorch's own."""
        if self.backend in ACTIVATED:
            ACTIVATED[self.backend][1].require(self.label, device)

    def check(self, shape: LayerShape) -> None:
        """Try the shape on a few zero tokens: a backend says what it refuses only when called."""
        self.check_machine(shape.device)
        rows = (shape.batch, shape.kv_heads, TRIAL_TOKENS, shape.head_dim)
        k = torch.zeros(rows, dtype=shape.dtype, device=shape.device)
        q = k.new_zeros(shape.batch, shape.heads, 1, shape.head_dim)
        with warnings.catch_warnings(record=True) as refusals:
            warnings.simplefilter("always")
            try:
                self.call(q, k[:, :, :-1], k[:, :, :-1], shape)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                raise refused(self, shape, error, [str(w.message) for w in refusals]) from error

    def attend(self, q: Tensor, k: Tensor, v: Tensor, shape: LayerShape) -> Tensor:
        """q [B,H,1,D], k and v [B,Hkv,N,D] -> [B,H,1,D]; `Unsupported` where it is refused."""
        try:
            return self.call(q, k, v, shape)
        except RuntimeError as error:
            if not any(words in str(error) for words in REFUSALS):
                raise
            raise refused(self, shape, error, []) from error

    def call(self, q: Tensor, k: Tensor, v: Tensor, shape: LayerShape) -> Tensor:
        """SDPA itself."""
        with self.chosen():
            return scaled_dot_product_attention(
                q, k, v, scale=shape.scale, enable_gqa=shape.group > 1
            )

    def chosen(self) -> AbstractContextManager[object]:
        """Restrict SDPA to this backend; it raises rather than take another."""
        if self.backend == "auto":
            return nullcontext()
        if self.backend in ACTIVATED:
            return activated(self.backend)
        return sdpa_kernel([BACKENDS[self.backend]])


@contextmanager
def activated(backend: str) -> Iterator[None]:
    """FlashAttention of another package in the place of PyTorch's own, until the end of this.

    Raises `Unsupported` where it cannot be put there.
    """
    from torch.nn import attention

    name, package = ACTIVATED[backend]
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="(?s).*Overriding a previously")
            attention.activate_flash_attention_impl(name)
    except (AttributeError, ImportError, RuntimeError, ValueError) as error:
        raise Unsupported(f"{name} cannot be activated: {error}", hint=package.install) from error
    try:
        with sdpa_kernel([SDPBackend.FLASH_ATTENTION]):
            yield
    finally:
        attention.restore_flash_attention_impl()


class SdpaLayer(ExactCacheLayer):
    """SDPA over the exact cache; the length is a shape."""

    def __init__(self, method: Sdpa, shape: LayerShape) -> None:
        super().__init__(shape)
        self.method = method

    def decode(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Write the new row, then attend to all rows."""
        return self.method.attend(q, *self.append(k, v), self.shape)


def refused(
    method: Sdpa, shape: LayerShape, error: RuntimeError, reasons: list[str]
) -> Unsupported:
    """The typed form of a backend's refusal, with the reasons that PyTorch warned about."""
    why = "; ".join(reasons) or str(error)
    return Unsupported(
        f"{method.label} does not run on {shape.device.type}: {why}",
        hint=f"tried with {shape.heads} heads over {shape.kv_heads} KV heads of dimension "
        f"{shape.head_dim} in {shape.dtype}; use sdpa without a backend, or another one",
    )
