"""Searches the launches of a step's products: which to compute by own kernels, and how launched.

What compiles and times a step is passed in.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from attnbench.kernels.product_launch import ChosenProduct, ProductLaunch, ProductShape
from attnbench.measure.answers import TriedProducts
from attnbench.measure.failing import arm_failure

Launches = dict[ProductShape, ProductLaunch]
BETTER = 0.998  # of the best time so far: less is the clock's noise
FUSED_SHARE = 0.6  # of the time, for kernels that do what stands around a product too
DURING = "tuning"


class Stand(Protocol):
    """A model whose step can be compiled with some products by own kernels, and timed."""

    def forms(self) -> Sequence[tuple[ProductShape, ...]]:
        """Of each product of the step what it can be, the one that does most first."""

    def offered(self, shape: ProductShape) -> Sequence[ProductLaunch]:
        """What may be tried for a product, the most promising first."""

    def compile(self, launches: Launches) -> None:
        """Compile the model anew with these products."""

    def time(self, launches: Launches) -> float:
        """Median microseconds of a step as it was compiled last, with other launches of the same
        products. Raises for a launch that does not run or is wrong."""


@dataclass
class Search:
    """Tries sets of products until `until` by the clock `now`; `tell` hears what runs."""

    stand: Stand
    now: Callable[[], float]
    until: float
    tell: Callable[[str], None]
    tried: list[TriedProducts] = field(default_factory=list)
    untried: int = 0

    def best(self, library_us: float) -> TriedProducts | None:
        """The fastest set of products; None where the library's step, which took `library_us`, is
        no slower."""
        fused, plain = self._shapes(0), self._shapes(-1)
        share = self.now() + FUSED_SHARE * (self.until - self.now())
        found = [self._descended(fused, True, share)] if fused != plain else []
        found.append(self._descended(plain, False, self.until))
        runs = [each for each in found if each is not None]
        best = min(runs, key=lambda each: each.step_us, default=None)
        if best is not None:
            best = self._without(best)
        return None if best is None or best.step_us >= BETTER * library_us else best

    def _shapes(self, place: int) -> list[ProductShape]:
        """One form of every product, the largest first."""
        shapes = dict.fromkeys(forms[place] for forms in self.stand.forms())
        offered = (shape for shape in shapes if self.stand.offered(shape))
        return sorted(offered, key=lambda shape: -shape.columns * shape.depth)

    def _descended(
        self, shapes: list[ProductShape], fused: bool, until: float
    ) -> TriedProducts | None:
        """Each product's launches in turn, all others at their best so far."""
        offered = {shape: tuple(self.stand.offered(shape)) for shape in shapes}
        best = self._compiled({shape: each[0] for shape, each in offered.items()}, fused)
        most = max(map(len, offered.values()), default=0)
        for rank in range(1, most):
            for shape, launches in offered.items():
                if rank >= len(launches):
                    continue
                if best is None or self.now() > until:
                    self.untried += 1
                    continue
                other = self._timed({**_launches(best), shape: launches[rank]}, fused)
                best = _faster(best, other)
        return best

    def _without(self, best: TriedProducts) -> TriedProducts:
        """Each product left to the library in turn, the least weights first."""
        for product in sorted(best.products, key=lambda p: p.shape.columns * p.shape.depth):
            if self.now() > self.until:
                self.untried += 1
                continue
            fewer = {s: launch for s, launch in _launches(best).items() if s != product.shape}
            other = self._compiled(fewer, best.fused) if fewer else None
            best = best if other is None else _faster(best, other)
        return best

    def _compiled(self, launches: Launches, fused: bool) -> TriedProducts | None:
        """Timed after compiling; None where that failed."""
        if not launches:
            return None
        try:
            self.stand.compile(launches)
        except Exception as error:  # noqa: BLE001 - compilers may raise anything
            self.tried.append(_failed(launches, fused, error))
            return None
        found = self._timed(launches, fused)
        return found if found.failure is None else None

    def _timed(self, launches: Launches, fused: bool) -> TriedProducts:
        self.tell(f"{len(self.tried)} tried")
        try:
            us = self.stand.time(launches)
        except Exception as error:  # noqa: BLE001 - as above
            found = _failed(launches, fused, error)
        else:
            found = TriedProducts(products=_chosen(launches), fused=fused, step_us=us)
        self.tried.append(found)
        return found


def _faster(best: TriedProducts, other: TriedProducts) -> TriedProducts:
    if other.failure is None and other.step_us < BETTER * best.step_us:
        return other
    return best


def _failed(launches: Launches, fused: bool, error: Exception) -> TriedProducts:
    failure = arm_failure(error, DURING)
    return TriedProducts(products=_chosen(launches), fused=fused, failure=failure)


def _chosen(launches: Launches) -> tuple[ChosenProduct, ...]:
    return tuple(ChosenProduct(shape, launch) for shape, launch in launches.items())


def _launches(tried: TriedProducts) -> Launches:
    return {each.shape: each.launch for each in tried.products}
