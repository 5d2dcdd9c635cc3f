"""What stands on a worker's bench: the model, its surveyed layers, and the filled exact cache.

Every arm starts from the same cache. Its hash is recorded once; after each arm's turn a checksum of
every token of every layer tells whether that arm damaged it, and if so it is filled again.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from attnbench.errors import DoesNotFit, ModelError
from attnbench.measure.arms import BenchArm, BrokenArm
from attnbench.measure.floor import weight_bytes
from attnbench.measure.tasks import Bench, Fill, LayerFacts
from attnbench.models.adapter import ExactCache, Router, SurveyedLayer, attention_router
from attnbench.models.info import LoadedModel, check_context
from attnbench.models.prefill import prefill, synthetic_fill
from attnbench.models.survey import survey
from attnbench.models.tables import full_attention_shapes, qkv_tables
from attnbench.protocol.cell import Arm, Mode, Scope
from attnbench.quality.text import default_text, read_text, windows

TABLE_STEPS = 64  # fresh tokens before a table starts again
INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class Workbench:
    """Model, cache and inputs of one bench; made by `open_bench`."""

    def __init__(self, bench: Bench, loaded: LoadedModel, router: Router) -> None:
        self.bench = bench
        self.kernels = dict(bench.kernels)
        self.broken: dict[str, str] = {}  # by arm, why it is not to be set up again
        self.loaded = loaded
        self.router = router
        self.device = torch.device(bench.device)
        self.surveyed = survey(
            loaded, router, bench.batch, bench.context + 1, torch_dtype(bench), self.device
        )
        refuse_without_full_attention(self.surveyed)
        self.weight_bytes = weight_bytes(loaded.module, bench.batch)
        self.tables = qkv_tables(self.surveyed, TABLE_STEPS, bench.seed)
        self.cache = ExactCache([layer.shape for layer in self.surveyed])
        self._prompt, self.token_table = self._tokens()
        self._fill()
        self.cache_sha256 = self.cache.sha256()
        self._intact = checksum(self.cache)

    def set_up(self, arm: Arm, scope: Scope, mode: Mode) -> BenchArm:
        """The arm with fresh state and workspaces, captured anew in graph mode."""
        if arm.label in self.broken:
            raise BrokenArm(self.broken[arm.label])
        return BenchArm(self, arm.method, self.kernels.get(arm.label), scope, mode)

    def require_intact_cache(self) -> None:
        """Raise `BrokenArm` where the exact cache is not as it was after its prefill."""
        if not torch.equal(checksum(self.cache), self._intact):
            raise BrokenArm("it left the shared cache changed: rows [0, N) or the zeros after them")

    def reclaim(self) -> None:
        """Take memory back from arms that are gone, and make whole what they may have damaged."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        if not torch.equal(checksum(self.cache), self._intact):
            self._fill()
        if not torch.equal(checksum(self.cache), self._intact):
            raise ModelError("the same prefill did not give the same cache again")

    def _fill(self) -> None:
        if self._prompt is None:
            synthetic_fill(self.cache, self.bench.context, self.bench.seed)
        else:
            prefill(self.loaded, self.router, self.cache, self._prompt)

    def _tokens(self) -> tuple[Tensor | None, Tensor]:
        """The prompt [B, N], None for a synthetic fill, and the tokens to decode [T, B]."""
        bench = self.bench
        if bench.fill is Fill.SYNTHETIC:
            generator = torch.Generator().manual_seed(bench.seed)
            size = (TABLE_STEPS, bench.batch)
            ids = torch.randint(self.loaded.info.vocab, size, generator=generator)
            return None, ids.to(self.device)
        if self.loaded.tokenizer is None:
            raise ModelError(
                f"{bench.model} has no tokenizer, so its cache cannot be filled from text",
                hint="put the tokenizer's files beside its weights",
            )
        ids = torch.from_numpy(
            windows(
                self.loaded.tokenizer,
                default_text() if bench.text is None else read_text(bench.text),
                bench.context + TABLE_STEPS,
                bench.batch,
                bench.seed,
            )
        ).to(self.device)
        return ids[:, : bench.context], ids[:, bench.context :].T.contiguous()


@contextmanager
def open_bench(bench: Bench) -> Iterator[Workbench]:
    """Load the model and fill the cache; the model's attention is restored at the end.

    Raises `DoesNotFit` where model and cache do not fit together.
    """
    from attnbench.models.sources import load

    device = torch.device(bench.device)
    try:
        loaded = load(bench.model, torch_dtype(bench), device, bench.seed)
        check_context(loaded.info, bench.context)
        with attention_router(loaded.module) as router, cheap_collections():
            yield Workbench(bench, loaded, router)
    except torch.OutOfMemoryError as error:
        raise DoesNotFit(
            f"the model and a cache of {bench.context} tokens for {bench.batch} sequences do not "
            f"fit: {error}",
            hint="use a smaller context or batch",
        ) from error


@contextmanager
def cheap_collections() -> Iterator[None]:
    """Take what is there now out of the garbage collector's sight.

    Else every collection, also one within a timed step, walks all of transformers.
    """
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def torch_dtype(bench: Bench) -> torch.dtype:
    """The dtype that the bench names."""
    found: torch.dtype = getattr(torch, bench.dtype)
    return found


def refuse_without_full_attention(surveyed: tuple[SurveyedLayer, ...]) -> None:
    """Raise `ModelError` for a model in which there is nothing to put a method into."""
    if not full_attention_shapes(surveyed):
        raise ModelError(
            "every layer of the model attends to a sliding window; methods replace full attention",
            hint="a context below the window makes these layers full",
        )


def checksum(cache: ExactCache) -> Tensor:
    """Sums over the bits of every cached token, [2 * layers, capacity] int64, on the device.

    Cheap enough to be taken after every visit, where a cryptographic hash of gigabytes is not: it
    shows a changed row and which one, and misses only what someone balances on purpose.
    """
    sums = [bit_sums(rows) for view in cache.views for rows in (view.k, view.v)]
    return torch.stack(sums)


def bit_sums(rows: Tensor) -> Tensor:
    """[B, Hkv, capacity, D] of any dtype -> [capacity]: its bits, read as integers, added up.

    Integers as wide as a row allows: 64 bits need no wider copy to be added up, and may overflow.
    """
    width = math.gcd(8, rows.shape[-1] * rows.element_size())
    return rows.view(INTEGERS[width]).sum(dim=(0, 1, 3), dtype=torch.int64)


def layer_facts(surveyed: tuple[SurveyedLayer, ...]) -> tuple[LayerFacts, ...]:
    """The survey as data, for processes that do not load the model."""
    return tuple(
        LayerFacts(
            layer=layer.shape.layer,
            heads=layer.shape.heads,
            kv_heads=layer.shape.kv_heads,
            head_dim=layer.shape.head_dim,
            scale=layer.shape.scale,
            window=layer.window,
        )
        for layer in surveyed
    )
