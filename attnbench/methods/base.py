"""What a method is: its definition, its decode state, and what it must declare.

A method is one file. `reference` says what it computes, in float64 and without regard for speed;
`layer` builds the state that decodes one token after another for one layer of a model. The harness
owns the exact cache and its length; a method that keeps the exact cache keeps the view, not a copy.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, ClassVar, Self

import torch
from torch import Tensor

from attnbench.errors import Unsupported
from attnbench.protocol.family import Family as Family  # a method file needs this module alone

if TYPE_CHECKING:
    from attnbench.methods.scheme import Scheme, SchemeConfig


@dataclass(frozen=True)
class KernelConfig:
    """Launch parameters of a kernel: chosen once per cell by the parent, never by a worker."""

    block_n: int  # cache rows per inner step
    splits: int  # programs that share one sequence and KV head
    num_warps: int
    num_stages: int
    ring: int = 0  # tiles of a ring that the copy engine fills, in place of the stages


@dataclass(frozen=True)
class LayerShape:
    """What attention of one layer needs besides q, k and v.

    Queries are [batch, heads, 1, head_dim], cached keys and values
    [batch, kv_heads, capacity, head_dim]; query head h reads KV head h // group.
    """

    batch: int
    heads: int
    kv_heads: int
    head_dim: int
    capacity: int
    dtype: torch.dtype
    device: torch.device
    layer: int
    scale: float
    kernel: KernelConfig | None = None

    @property
    def group(self) -> int:
        """Query heads that share one KV head."""
        return self.heads // self.kv_heads

    @property
    def row_bytes(self) -> int:
        """Bytes of one cached token in this layer: key and value of every KV head and sequence."""
        return 2 * self.batch * self.kv_heads * self.head_dim * self.dtype.itemsize


class CacheLength:
    """The number of cached tokens, on the host and on the device; only the harness changes it."""

    def __init__(self, device: torch.device, tokens: int = 0) -> None:
        self.tokens = tokens
        self.tensor = torch.full((1,), tokens, dtype=torch.int32, device=device)

    def set(self, tokens: int) -> None:
        """Move to `tokens` cached tokens, in place, so that captured graphs see it."""
        self.tokens = tokens
        self.tensor.fill_(tokens)

    def advance(self) -> None:
        """One more token is cached."""
        self.set(self.tokens + 1)


@dataclass(frozen=True)
class CacheView:
    """One layer of the run's exact cache: k and v are [B, Hkv, capacity, D], post-RoPE.

    Rows from `length` on are zero. `decode` writes row `length` and attends to `length + 1` rows.
    """

    k: Tensor
    v: Tensor
    length: CacheLength


class MethodLayer(ABC):
    """The decode state of one layer."""

    @abstractmethod
    def prefill(self, cache: CacheView, q: Tensor | None = None) -> None:
        """Take over the cached tokens; `q` holds the prompt's queries where they are known."""

    @abstractmethod
    def decode(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Append one token and attend: q [B,H,1,D], k and v [B,Hkv,1,D] -> [B,H,1,D]."""

    @abstractmethod
    def reset(self) -> None:
        """Return to the state right after prefill; exact-cache rows from `length` on are zero."""

    def maintain(self) -> None:
        """What a step does beside the others once in `Method.period` steps, such as coding a page
        that is full. Called after every so many steps where time is taken, at whatever length: the
        length stands still there, and captured steps hold no branch of Python's. The steps after it
        give what they would have given without."""
        return

    @abstractmethod
    def tensors(self) -> Iterator[Tensor]:
        """Everything kept between steps."""

    def attended_rows(self, q: Tensor) -> Tensor | None:
        """Which tokens each query head attended to in the last step, which had queries q [B,H,1,D]:
        bool [B,H,N], the newest included; the length is still that of the step. None: this layer
        cannot tell."""
        del q
        return None

    def logit_bounds(self, q: Tensor) -> tuple[Tensor, int] | None:
        """What this layer takes for the most that a logit of each block of tokens can be, in the
        last step, which had queries q [B,H,1,D]: [B,H,n] in the units of logits, and how many
        tokens a block holds. None: it bounds nothing."""
        del q
        return None

    @abstractmethod
    def bytes_read(self) -> int:
        """The least device memory, in bytes, that one decode step must read at this length; where
        that hangs on the data, of the last step, as the witness is."""

    @abstractmethod
    def witness(self) -> Mapping[str, float]:
        """Proof that the method engaged in the last step; always holds `kept_share`.

        That is the number of rows whose values enter the output, over the number of tokens, the
        newest included in both, averaged over sequences and query heads: of a selection the
        attended tokens, of a cache in fewer bits all of them. A row that stands for several tokens,
        such as their mean, is one row: a method that merged tokens declares the rows it has left,
        and more tokens than those have influence. It may then take from the exact cache no more
        than it declares, and keep of its own no more than its share takes there
        (`integrity.OWN_SLACK`).
        The share is the budget at which quality is compared with random tokens, and what the
        bytes declared for the same step must cover.
        """


@dataclass(frozen=True)
class Method(ABC):
    """An attention or KV-cache method; its dataclass fields are its parameters."""

    name: ClassVar[str]
    family: ClassVar[Family]
    source: ClassVar[str]
    # Best first for CUDA. Where there are several, the method has a field `impl: str = ""`, and the
    # empty string is replaced by one of them before the run: by the first on CUDA, by `elsewhere`
    # on other devices. A method whose implementations are what is claimed of it names the field
    # otherwise, since `impl` tells no two arms of a claim apart.
    implementations: ClassVar[tuple[str, ...]] = ("torch",)
    choice: ClassVar[str] = "impl"
    elsewhere: ClassVar[str] = "torch"

    @property
    def dynamic_length(self) -> bool:
        """Whether the length may grow inside a captured step: read from the device, not a shape."""
        return False

    @property
    def period(self) -> int:
        """Steps from one that does recurring work to the next; 1: all steps do the same. A visit
        times whole periods, two at the least, with `MethodLayer.maintain` in the last step of each.
        Whether work comes with the number of steps or with the length is one: a generation meets
        both in every period."""
        return 1

    @classmethod
    def variants(cls, device_type: str) -> tuple[Self, ...]:
        """The parameter choices to check, and for EXACT methods to time, on this type of device."""
        if cls.implementations == ("triton",) and device_type != "cuda":
            return ()
        return (cls(),)

    @property
    def together(self) -> int:
        """Tokens that a selection takes together: as many does a random choice take, too."""
        return 1

    def full_budget(self, tokens: int) -> Self | None:
        """This method with nothing left out of `tokens` tokens; None: it has no budget."""
        del tokens
        return None

    def rows_by_position(self, tokens: int) -> frozenset[int] | None:
        """Which of so many tokens it attends to, where their positions alone decide that; two
        methods that answer alike are one selection under two names."""
        del tokens
        return None

    @abstractmethod
    def reference(self, q: Tensor, k: Tensor, v: Tensor, shape: LayerShape) -> Tensor:
        """The definition in float64: [B,H,1,D], [B,Hkv,N,D] twice -> [B,H,1,D]."""

    @abstractmethod
    def layer(self, shape: LayerShape) -> MethodLayer:
        """Fresh decode state for one layer."""

    def reference_layer(self, shape: LayerShape) -> MethodLayer:
        """The definition with state; by default wraps `reference`."""
        from attnbench.methods.reference import ReferenceLayer

        return ReferenceLayer(self, shape)

    def scheme(self, config: SchemeConfig) -> Scheme:
        """What a model is trained from scratch with; REPLACEMENT alone has one.

        Such a method is judged by that training and in no other way: in a model that was trained
        with another function it gets no quality verdict.
        """
        del config
        raise Unsupported(
            f"{self.name} is {self.family}: no model is trained with it",
            hint="judge it in a trained model: `attnbench quality " + self.name + "`",
        )

    def check_machine(self, device: torch.device) -> None:
        """Raise `Unsupported` where no shape would help: another kind of device, or a package that
        is missing. Asked by the parent too: imports no such package and touches no GPU."""
        del device

    def check(self, shape: LayerShape) -> None:
        """Raise `Unsupported` where this method cannot run."""
        self.check_machine(shape.device)

    @property
    def available(self) -> tuple[str, ...]:
        """Those of `implementations` that there are for these parameters, in the same order."""
        return self.implementations

    def configurations(self, shape: LayerShape) -> tuple[KernelConfig, ...]:
        """Launch parameters worth trying, the default first; empty: there is nothing to choose."""
        del shape
        return ()

    def resolved(self, device: torch.device) -> Self:
        """The same method with its implementation fixed for `device`, unless it already is."""
        if getattr(self, self.choice, None) != "":
            return self
        impl = self.available[0] if device.type == "cuda" else self.elsewhere
        if impl not in self.available:
            raise Unsupported(
                f"{self.name} has no implementation for {device.type}",
                hint=f"it runs as {', '.join(self.available)} on a CUDA GPU",
            )
        fixed: dict[str, str] = {self.choice: impl}
        return replace(self, **fixed)

    @property
    def label(self) -> str:
        """The arm's name: the method and every parameter that is not its default."""
        changed = (
            f"{f.name}={getattr(self, f.name)}"
            for f in fields(self)
            if getattr(self, f.name) != f.default
        )
        return ",".join((self.name, *changed))
