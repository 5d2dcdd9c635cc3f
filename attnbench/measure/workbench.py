"""What stands on a worker's bench: the model, its surveyed layers, and the filled exact cache.

Every arm starts from the same cache. Its hash is recorded once; after each arm's turn a sum of
every token of every layer tells whether that arm damaged it, and if so it is filled again.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext

import torch
from torch import Tensor

from attnbench.errors import DoesNotFit, ModelError
from attnbench.measure.arms import BenchArm, BrokenArm
from attnbench.measure.failing import is_out_of_memory
from attnbench.measure.floor import weight_bytes
from attnbench.measure.intact import Intact
from attnbench.measure.prompts import TEXT_STEPS, require_tokenizer
from attnbench.measure.sums import cache_sums
from attnbench.measure.taps import Echo
from attnbench.measure.tasks import Bench, Fill, LayerFacts
from attnbench.methods.base import MethodLayer
from attnbench.models.adapter import (
    ExactCache,
    PassingCache,
    Router,
    SurveyedLayer,
    attention_router,
)
from attnbench.models.compiled import CompiledModel, compiled_model
from attnbench.models.exact import ExactLayer
from attnbench.models.info import LoadedModel, check_context
from attnbench.models.prefill import (
    last_logits,
    prefill,
    rope_depends_on_length,
    synthetic_fill,
)
from attnbench.models.step import DecodeStep
from attnbench.models.survey import survey
from attnbench.models.tables import full_attention_shapes, qkv_tables, relink, token_table
from attnbench.protocol.cell import Arm, Mode, Scope
from attnbench.protocol.verdict import Reason
from attnbench.quality.text import default_text, read_text, windows

# Rows of a table of inputs, before it starts again: as many as the bytes allow.
FEWEST_ROWS, MOST_ROWS = 64, 1024
TABLE_BYTES = {"cuda": 256 << 20, "cpu": 1 << 20}


class Workbench:
    """Model, cache and inputs of one bench; made by `open_bench`."""

    compiled: CompiledModel | None = None

    def __init__(
        self, bench: Bench, loaded: LoadedModel, router: Router, to_the_end: ExitStack
    ) -> None:
        self.bench = bench
        self._to_the_end = to_the_end  # contexts that end with the bench
        self.kernels = dict(bench.kernels)
        self.broken = dict(bench.left_out)  # by arm, why it is not to be set up again
        self.loaded = loaded
        self.router = router
        self.device = torch.device(bench.device)
        self.surveyed = survey(
            loaded, router, bench.batch, bench.context + 1, torch_dtype(bench), self.device
        )
        refuse_without_full_attention(self.surveyed)
        self.weight_bytes = weight_bytes(loaded.module, bench.batch)
        self.tables = qkv_tables(self.surveyed, self._rows(), bench.seed)
        self.cache = ExactCache([layer.shape for layer in self.surveyed])
        self._prompt, tokens = self._tokens()
        self._vocabulary = self._words_of(tokens)
        self.token_words = token_table(tokens, bench.context)
        self._fill: Callable[[], None] = self._fill_from_prompt
        self._fill()
        self.cache_sha256 = self.cache.sha256()
        self._intact = cache_sums(self.cache)
        self._know_model()
        self.freshen(bench.seed)

    def compile(self) -> None:
        """Compile the model's layers with exact attention in them: what steps of mode compiled run.

        Raises `Unsupported` where they cannot be compiled.
        """
        launches = {each.shape: each.launch for each in self.bench.products}
        self.compiled = self._to_the_end.enter_context(compiled_model(self.loaded.module, launches))
        layers = [ExactLayer(layer.shape, layer.window) for layer in self.surveyed]
        for layer, view in zip(layers, self.cache.views, strict=True):
            layer.prefill(view)
        step = DecodeStep(
            self.loaded, self.router, self.cache, layers, self.token_words, self.compiled
        )
        self.compiled.seal(step)
        self.clear_slot()
        self._know_model()
        gc.collect()
        gc.freeze()  # what the compiler keeps, for the same reason as all that came before

    def _know_model(self) -> None:
        """Take the model as it is now for intact."""
        self._model = Intact(self.loaded.module)

    def set_up(self, arm: Arm, scope: Scope, mode: Mode, *, in_turn: bool = False) -> BenchArm:
        """The arm with fresh state and workspaces, captured anew where the mode captures."""
        if arm.label in self.broken:
            failure = self.broken[arm.label]
            raise BrokenArm(failure.message, hint=failure.hint, reason=failure.reason)
        launch = self.kernels.get(arm.label)
        return BenchArm(self, arm.method, launch, scope, mode, in_turn=in_turn)

    def clear_slot(self) -> None:
        """Zeros in the cache where steps write."""
        self.cache.reset(self.bench.context)

    def freshen(self, seed: int) -> None:
        """New inputs for every step, in place: q, k and v, and tokens."""
        generator = torch.Generator(self.device).manual_seed(seed)
        for words in (self.tables.words, self.token_words):
            relink(words)
        self.tables.draw(generator)
        self._draw_tokens(generator)
        self._inputs = self._input_sums()

    def vary(self, seed: int) -> None:
        """Inputs for every step that no step has had before, made of those that are there: signs of
        q, k and v turned, and new tokens. Cheap enough before every visit."""
        generator = torch.Generator(self.device).manual_seed(seed)
        self.tables.turn(generator)
        self._draw_tokens(generator)
        self._inputs = self._input_sums()

    def _draw_tokens(self, generator: torch.Generator) -> None:
        """Tokens that the text holds, or any where there is none, each at a place in the second
        half of the context.

        A token at one place is one q, k and v of the first layer, whoever decodes it: few tokens at
        the same place would soon all have been seen. Where the angles of places hang on the length,
        all stand at its end.
        """
        tokens, places = self.token_words[:, :-1].chunk(2, dim=1)
        size, end = tokens.shape, self.bench.context + 1
        first = end - 1 if rope_depends_on_length(self.loaded.module.config) else end // 2
        drawn = torch.randint(len(self._vocabulary), size, generator=generator, device=self.device)
        tokens.copy_(self._vocabulary[drawn])
        places.copy_(torch.randint(first, end, size, generator=generator, device=self.device))

    def hold(self) -> None:
        """The first row's inputs for every step, until `freshen`."""
        for words in (self.tables.words, self.token_words):
            words[:, :-1] = words[:1, :-1].clone()
        self._inputs = self._input_sums()

    def require_intact(self, *, thoroughly: bool = False) -> None:
        """Raise `BrokenArm` where the exact cache, but for the slot that steps write, is not as it
        was after its prefill, or inputs are not as they were handed out.

        `thoroughly`: the slot too.
        """
        # The slot is zero where the cache is intact.
        now = cache_sums(self.cache, without=None if thoroughly else self.bench.context)
        if not torch.equal(now, self._intact):
            raise BrokenArm(
                "it left the shared cache changed: rows [0, N) or the zeros after them",
                reason=Reason.CACHE_CHANGED,
            )
        if not torch.equal(self._input_sums(), self._inputs):
            raise BrokenArm("it changed inputs of other steps", reason=Reason.INPUTS_CHANGED)

    def require_intact_model(self) -> None:
        """Raise `SessionLost` where the model's weights or modules are not as they were loaded."""
        self._model.require()

    @torch.no_grad()
    def logits_given(
        self,
        tokens: Tensor,
        places: Tensor,
        outputs: Mapping[int, Tensor],
        mode: Mode = Mode.EAGER,
    ) -> Tensor:
        """Logits [B, vocab] after `tokens` [B] at `places` [B], attention of each layer having
        given `outputs` [B,H,1,D]; a sliding layer, which has none, attends exactly. With the
        kernels of `mode`."""
        layers: list[MethodLayer] = []
        for layer, view in zip(self.surveyed, self.cache.views, strict=True):
            given = outputs.get(layer.shape.layer)
            built = ExactLayer(layer.shape, layer.window) if given is None else Echo(given)
            built.prefill(view)
            layers.append(built)
        self.router.decode(layers)
        ids, where = (each.to(self.device).view(-1, 1) for each in (tokens, places))
        compiled = self.compiled if mode is Mode.COMPILED else None
        with nullcontext() if compiled is None else compiled.engaged():
            logits = last_logits(self.loaded.module, ids, where, PassingCache(self.cache.length))
        self.cache.reset(self.bench.context)
        return logits

    def accept_cache(self, fill: Callable[[], None]) -> None:
        """Take the cache as it is now for intact; `fill` makes it so again."""
        self._fill = fill
        self._intact = cache_sums(self.cache)

    def accept_inputs(self) -> None:
        """Take the inputs as they are now for intact, until `freshen` or `hold`."""
        self._inputs = self._input_sums()

    def _input_sums(self) -> Tensor:
        # By row: the links between rows add up to nothing, broken or not.
        return torch.cat([self.tables.words.sum(dim=1), self.token_words.sum(dim=1)])

    def _rows(self) -> int:
        """Rows of a table of inputs that its share of memory holds."""
        shapes = full_attention_shapes(self.surveyed)
        row_bytes = sum(
            shape.batch * (shape.heads + 2 * shape.kv_heads) * shape.head_dim * shape.dtype.itemsize
            for shape in shapes
        )
        return min(max(TABLE_BYTES[self.device.type] // row_bytes, FEWEST_ROWS), MOST_ROWS)

    def reclaim(self) -> None:
        """Take memory back from arms that are gone, and make whole what they may have damaged."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        self.cache.reset(self.bench.context)
        if not torch.equal(self._input_sums(), self._inputs):
            self.freshen(self.bench.seed)
        if not self._is_whole():
            self._fill()
        if not self._is_whole():
            raise ModelError("the same prefill did not give the same cache again")

    def _is_whole(self) -> bool:
        return torch.equal(cache_sums(self.cache), self._intact)

    def _fill_from_prompt(self) -> None:
        if self._prompt is None:
            synthetic_fill(self.cache, self.bench.context, self.bench.seed)
        else:
            prefill(self.loaded, self.router, self.cache, self._prompt)

    def _words_of(self, tokens: Tensor) -> Tensor:
        """What tokens to decode are drawn from: all that the prompt and what follows it hold."""
        if self._prompt is None:
            return torch.arange(self.loaded.info.vocab, device=self.device)
        said: Tensor = torch.unique(torch.cat([tokens, self._prompt.T]))
        return said

    def _tokens(self) -> tuple[Tensor | None, Tensor]:
        """The prompt [B, N], None for a synthetic fill, and the tokens to decode [T, B]."""
        bench = self.bench
        if bench.fill is Fill.SYNTHETIC:
            generator = torch.Generator().manual_seed(bench.seed)
            size = (MOST_ROWS, bench.batch)
            ids = torch.randint(self.loaded.info.vocab, size, generator=generator)
            return None, ids.to(self.device)
        ids = torch.from_numpy(
            windows(
                require_tokenizer(bench.model, self.loaded.tokenizer),
                default_text() if bench.text is None else read_text(bench.text),
                bench.context + TEXT_STEPS,
                bench.batch,
                bench.seed,
            )
        ).to(self.device)
        after = ids[:, bench.context :].T
        return ids[:, : bench.context], after.repeat(MOST_ROWS // TEXT_STEPS, 1)


@contextmanager
def open_bench(bench: Bench, model: Callable[[], LoadedModel] | None = None) -> Iterator[Workbench]:
    """Load the model, or take it from `model`, and fill the cache; the model's attention is
    restored at the end.

    Raises `DoesNotFit` where model and cache do not fit together.
    """
    try:
        loaded = loaded_model(bench) if model is None else model()
        check_context(loaded.info, bench.context)
        with (
            attention_router(loaded.module) as router,
            cheap_collections(),
            ExitStack() as to_the_end,
        ):
            yield Workbench(bench, loaded, router, to_the_end)
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise DoesNotFit(
            f"the model and a cache of {bench.context} tokens for {bench.batch} sequences do not "
            f"fit: {error}",
            hint="use a smaller context or batch",
        ) from error


def loaded_model(bench: Bench) -> LoadedModel:
    """The model that the bench names, on its device."""
    from attnbench.models.sources import load

    return load(bench.model, torch_dtype(bench), torch.device(bench.device), bench.seed)


@contextmanager
def cheap_collections() -> Iterator[None]:
    """Take what is there now out of the garbage collector's sight.

    Else every collection, also one within a timed step, walks all of transformers.
    """
    gc.unfreeze()  # imports, which the collector is to have counted: it then looks less often
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
