"""Finds which products of a model's compiled step run faster by own kernels, in the step itself.

Attention is the zero-cost arm, so that the step is products and what stands around them: a kernel
that is the fastest alone may crowd out the next one, or leave it nothing to overlap with. Every
launch is compared with float64 first, and the step's logits with those of the library's step.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from attnbench.errors import Unsupported
from attnbench.kernels.product_launch import ProductLaunch, ProductShape
from attnbench.kernels.products import RING_CAPABILITY, product, ring_launches, triton_launches
from attnbench.measure.answers import ProductResult
from attnbench.measure.arms import BrokenArm
from attnbench.measure.clock import Clock, device_clock
from attnbench.measure.events import Tell
from attnbench.measure.pilot import device_properties
from attnbench.measure.product_search import Launches, Search
from attnbench.measure.tasks import ProductTask
from attnbench.measure.workbench import Workbench, open_bench
from attnbench.methods.conformance import BOUNDS
from attnbench.methods.registry import parse
from attnbench.models.compiled import CompiledModel, ready_to_compile
from attnbench.models.few_rows import ProductSurvey
from attnbench.models.product_definition import defined_product
from attnbench.models.step import CapturedStep, DecodeStep, Step, build_layers
from attnbench.protocol.verdict import Reason

WARMUP, STEPS, ROUNDS = 3, 20, 9
MOST_TRITON = 4  # beside the ring kernel's launches
# Two right ways to round, through all layers: a wrong product gives another order of magnitude.
LOGITS_BOUND = {torch.float32: 1e-3, torch.float16: 0.05, torch.bfloat16: 0.1}
COLUMNS = 4096  # of a product that are compared, at either end


def run_product_tuning(
    task: ProductTask,
    tell: Tell,
    *,
    clock: Clock | None = None,
    now: Callable[[], float] = time.monotonic,
) -> ProductResult:
    """Try launches until the time is over; then the best and the library's in rounds."""
    until = now() + task.within_s if task.within_s else float("inf")
    tell(0, 0, f"loading {task.bench.model}")
    with open_bench(task.bench) as bench, ready_to_compile(bench.loaded.module):
        stand = CompiledStand(bench, clock or device_clock(bench.device))
        tell(0, 0, "compiling the library's step")
        library_us = stand.library()
        search = Search(stand, now, until, lambda said: tell(0, 0, said))
        best = search.best(library_us)
        rounds: tuple[tuple[float, ...], tuple[float, ...]] = ((), ())
        if best is not None:
            launches = {each.shape: each.launch for each in best.products}
            stand.compile(launches)
            rounds = stand.rounds(launches)
        return ProductResult(
            sites=tuple(stand.counts().items()),
            weight_bytes=bench.weight_bytes,
            library_us=library_us,
            tried=tuple(search.tried),
            best=() if best is None else best.products,
            rounds_us=rounds[0],
            library_rounds_us=rounds[1],
            untried=search.untried,
            device=device_properties(bench.device),
        )


class CompiledStand:
    """The model on a bench, compiled anew for every set of products."""

    def __init__(self, bench: Workbench, clock: Clock) -> None:
        self._bench = bench
        self._clock = clock
        self._survey = ProductSurvey()
        self._compiled = CompiledModel(bench.loaded.module, {}, self._survey)
        self._library: Step | None = None
        self._logits: Tensor | None = None
        self._right: set[tuple[ProductShape, ProductLaunch]] = set()

    def library(self) -> float:
        """Median microseconds of a step all of whose products are the library's."""
        self._compiled.seal(self._decode())
        self._library = self._step()
        self._logits = self._first_logits(self._library)
        return median(self._clock.time(self._library, STEPS).steps_us)

    def counts(self) -> dict[ProductShape, int]:
        """Products of a step by own kernels, as it was compiled last."""
        return dict(self._compiled.products)

    def forms(self) -> Sequence[tuple[ProductShape, ...]]:
        """What the compiler's graphs have, and the head."""
        head = self._bench.loaded.module.get_output_embeddings()  # type: ignore[operator]
        forms = list(self._survey.sites)
        if type(head) is nn.Linear:
            columns, depth = head.weight.shape
            forms.append((ProductShape(self._bench.bench.batch, columns, depth),))
        return forms

    def offered(self, shape: ProductShape) -> Sequence[ProductLaunch]:
        """The launches for this GPU and dtype."""
        device, weights = self._bench.device, next(self._bench.loaded.module.parameters())
        size = weights.element_size()
        others = triton_launches(shape, size)
        capability = torch.cuda.get_device_capability(device)[0] if device.type == "cuda" else 0
        if capability != RING_CAPABILITY or size != 2:
            return others
        return (*ring_launches(shape), *others[:MOST_TRITON])

    def compile(self, launches: Launches) -> None:
        """Compile, and run a step."""
        for shape, launch in launches.items():
            self._require_right(shape, launch)
        torch.compiler.reset()
        self._compiled = CompiledModel(self._bench.loaded.module, launches)
        self._compiled.seal(self._decode())

    def time(self, launches: Launches) -> float:
        """Captured anew, once each launch and then the step have been found right."""
        for shape, launch in launches.items():
            self._require_right(shape, launch)
        self._compiled.relaunch(launches)
        step = self._step()
        self._require_same_logits(step)
        return median(self._clock.time(step, STEPS).steps_us)

    def rounds(self, launches: Launches) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean microseconds of a step of these launches and of the library's, in turn."""
        if self._library is None:
            raise Unsupported("the library's step was not timed")
        self._compiled.relaunch(launches)
        steps = (self._step(), self._library)
        taken: tuple[list[float], list[float]] = ([], [])
        for number in range(ROUNDS):
            for which in (0, 1) if number % 2 else (1, 0):
                steps_us = self._clock.time(steps[which], STEPS).steps_us
                taken[which].append(sum(steps_us) / len(steps_us))
        return tuple(taken[0]), tuple(taken[1])

    def _decode(self) -> DecodeStep:
        bench = self._bench
        layers = build_layers(
            parse("zero_cost").resolved(bench.device), bench.cache, bench.surveyed
        )
        words = bench.token_words
        return DecodeStep(bench.loaded, bench.router, bench.cache, layers, words, self._compiled)

    def _step(self) -> Step:
        """Warmed up, and captured where that can be."""
        gc.collect()
        step: Step = self._decode()
        if self._bench.device.type == "cuda":
            step = CapturedStep(step)
        self._clock.time(step, WARMUP)
        return step

    def _first_logits(self, step: Step) -> Tensor:
        step.reset()
        logits = step()
        step.reset()
        if not isinstance(logits, Tensor):
            raise TypeError("a step gives its logits")
        return logits.double()

    def _require_same_logits(self, step: Step) -> None:
        expected = self._logits
        if expected is None:
            return
        error = float((self._first_logits(step) - expected).norm() / expected.norm())
        bound = LOGITS_BOUND[next(self._bench.loaded.module.parameters()).dtype]
        if not error <= bound:
            raise BrokenArm(
                f"the step's logits differ from those of the library's by {error:.2g} (relative "
                f"L2); {bound:.2g} is allowed",
                reason=Reason.WRONG_OUTPUT,
            )

    @torch.no_grad()
    def _require_right(self, shape: ProductShape, launch: ProductLaunch) -> None:
        """A product of noise against its definition, in the first and the last columns."""
        if (shape, launch) in self._right:
            return
        like = next(self._bench.loaded.module.parameters())
        parts = noise(shape, like.dtype, like.device, self._bench.bench.seed)
        got = product(**parts, launch=launch).double()
        error = max(_error(got, parts, ends) for ends in _ends(shape))
        if not error <= BOUNDS[like.dtype]:
            raise BrokenArm(
                f"{launch} of {shape} differs from its definition by {error:.2g} (relative L2); "
                f"{BOUNDS[like.dtype]:.2g} is allowed",
                reason=Reason.WRONG_OUTPUT,
            )
        self._right.add((shape, launch))


def noise(
    shape: ProductShape, dtype: torch.dtype, device: torch.device, seed: int
) -> dict[str, Any]:
    """Arguments of `product` for this shape, with a bias, from a seed."""
    generator = torch.Generator(device).manual_seed(seed)

    def drawn(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, device=device).to(dtype)

    gated = "gate" in shape.form
    out = shape.columns // 2 if gated else shape.columns
    return {
        "x": drawn(shape.rows, shape.depth),
        "weights": drawn(shape.columns, shape.depth).mul_(shape.depth**-0.5),
        "bias": drawn(shape.columns),
        "residual": drawn(shape.rows, out) if "residual" in shape.form else None,
        "norm": 1 + 0.1 * drawn(shape.depth) if "norm" in shape.form else None,
        "epsilon": 1e-5 if "norm" in shape.form else 0.0,
        "gated": gated,
    }


def _ends(shape: ProductShape) -> tuple[slice, ...]:
    """The first and the last columns of a product's result."""
    out = shape.columns // 2 if "gate" in shape.form else shape.columns
    return (slice(0, min(COLUMNS, out)), slice(max(0, out - COLUMNS), out))


def _error(got: Tensor, parts: dict[str, Any], columns: slice) -> float:
    """Of these columns, relative, in the second norm."""
    some = dict(parts)
    for name in ("weights", "bias"):
        halves = parts[name].chunk(2) if parts["gated"] else (parts[name],)
        some[name] = torch.cat([half[columns] for half in halves])
    if parts["residual"] is not None:
        some["residual"] = parts["residual"][:, columns]
    right = defined_product(**some)
    return float((got[:, columns] - right).norm() / right.norm())
