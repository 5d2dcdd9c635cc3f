"""One decode step of a model, eager or captured in a CUDA graph, over a cache of fixed length."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor

from attnbench.errors import DoesNotFit, Unsupported
from attnbench.methods.base import KernelConfig, Method, MethodLayer
from attnbench.models.adapter import ExactCache, PassingCache, Router, SurveyedLayer
from attnbench.models.compiled import CompiledModel
from attnbench.models.exact import ExactLayer
from attnbench.models.graph_nodes import KernelList, kernel_list
from attnbench.models.info import LoadedModel
from attnbench.models.prefill import last_logits
from attnbench.models.tables import QKVTables, RowReader


class Step(Protocol):
    """One step of an arm: no argument, no host synchronisation, the same length every time."""

    layers: tuple[MethodLayer, ...]

    def __call__(self) -> Tensor | tuple[Tensor, ...]:
        """Run one step on the next row of its table."""
        ...

    def reset(self) -> None:
        """Back to the first row of the table and the state after prefill."""
        ...


def build_layers(
    method: Method,
    cache: ExactCache,
    surveyed: Sequence[SurveyedLayer],
    kernel: KernelConfig | None = None,
) -> list[MethodLayer]:
    """The method's state for every full-attention layer, the exact one for every sliding layer."""
    layers = []
    for layer, view in zip(surveyed, cache.views, strict=True):
        built = _full_layer(method, layer, kernel) if layer.window is None else _sliding(layer)
        built.prefill(view)
        layers.append(built)
    return layers


def _full_layer(method: Method, layer: SurveyedLayer, kernel: KernelConfig | None) -> MethodLayer:
    shape = replace(layer.shape, kernel=kernel)
    method.check(shape)
    return method.layer(shape)


def _sliding(layer: SurveyedLayer) -> MethodLayer:
    return ExactLayer(layer.shape, layer.window)


class DecodeStep:
    """The whole decode step: writes slot N of every layer and attends to N + 1 tokens.

    `token_words` is a `token_table` on the model's device: the tokens to decode, and where in the
    text each is said to stand. The row is chosen on the device, so that a captured step sees a
    fresh token at every replay. With `compiled` the model's layers run compiled.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        router: Router,
        cache: ExactCache,
        layers: Sequence[MethodLayer],
        token_words: Tensor,
        compiled: CompiledModel | None = None,
    ) -> None:
        self.layers = tuple(layers)
        self._compiled = compiled
        self._module = loaded.module
        self._router = router
        self._passing = PassingCache(cache.length)
        self._rows = RowReader(token_words)
        self._ids: Tensor
        self._places: Tensor
        self._ids, self._places = self._rows.row.view(2, -1, 1)

    @torch.no_grad()
    def __call__(self) -> Tensor:
        """Logits [B, vocab] after the next token of the table."""
        self._router.decode(self.layers)
        self._rows.advance()
        with nullcontext() if self._compiled is None else self._compiled.engaged():
            return last_logits(self._module, self._ids, self._places, self._passing)

    @property
    def tokens(self) -> Tensor:
        """Token ids [B] of the last step."""
        return self._ids[:, 0]

    @property
    def places(self) -> Tensor:
        """Where they stood, [B]."""
        return self._places[:, 0]

    def reset(self) -> None:
        """Back to the first token and the state after prefill."""
        self._rows.reset()
        for layer in self.layers:
            layer.reset()


class AttentionStep:
    """Attention of the model's full-attention layers alone, on fresh q, k and v at every step.

    `layers` are those of the whole model; sliding layers stand aside.
    """

    def __init__(self, layers: Sequence[MethodLayer], tables: QKVTables) -> None:
        self.layers = tuple(layers[shape.layer] for shape in tables.shapes)
        self._rows = RowReader(tables.words)
        self._inputs = tables.split(self._rows.row)

    @torch.no_grad()
    def __call__(self) -> tuple[Tensor, ...]:
        """Outputs [B, H, 1, D] of every layer for the next row of the tables."""
        self._rows.advance()
        return tuple(
            layer.decode(q, k, v)
            for layer, (q, k, v) in zip(self.layers, self._inputs, strict=True)
        )

    def inputs_untouched(self) -> bool:
        """Whether q, k and v of the last step are still as the table holds them."""
        return self._rows.untouched()

    def reset(self) -> None:
        """Back to the first row and the state after prefill."""
        self._rows.reset()
        for layer in self.layers:
            layer.reset()


class InTurnStep(AttentionStep):
    """The same with the inputs of a layer coming when the layers before it are done, as in a model.

    Outputs are copied as they are returned: what is finished later, or computed from inputs that
    were not there yet, is wrong in them.
    """

    def __init__(self, layers: Sequence[MethodLayer], tables: QKVTables) -> None:
        super().__init__(layers, tables)
        self._tables = tables
        self._places = tables.by_layer(self._rows.row)
        self._wrote = False

    @torch.no_grad()
    def __call__(self) -> tuple[Tensor, ...]:
        """Copies of the outputs [B, H, 1, D] of every layer for the next row of the tables."""
        self._rows.advance()
        coming = self._tables.by_layer(self._rows.row.clone())
        self._rows.row.zero_()
        outputs = []
        for layer, inputs, place, new in zip(
            self.layers, self._inputs, self._places, coming, strict=True
        ):
            place.copy_(new)
            outputs.append(self._decoded(layer, *inputs))
        return tuple(outputs)

    def _decoded(self, layer: MethodLayer, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        writes = self._rows.row._version
        out = layer.decode(q, k, v)
        self._wrote |= self._rows.row._version != writes
        return out.clone()

    def inputs_untouched(self) -> bool:
        """Whether no layer wrote to its inputs either, not even what was there already."""
        return not self._wrote and super().inputs_untouched()


class Maintenance:
    """What layers do after the last step of a period."""

    def __init__(self, layers: Sequence[MethodLayer]) -> None:
        self.layers = tuple(layers)

    @torch.no_grad()
    def __call__(self) -> tuple[Tensor, ...]:
        """Of each, in turn; there is no output."""
        for layer in self.layers:
            layer.maintain()
        return ()

    def reset(self) -> None:
        """The state after prefill."""
        for layer in self.layers:
            layer.reset()


class CapturedStep:
    """A step recorded in a CUDA graph with a memory pool of its own; calling it replays the graph.

    Outputs live in the graph's memory: the next replay overwrites them. Raises `Unsupported` when
    the step cannot be captured, `DoesNotFit` when memory runs out.
    """

    def __init__(self, step: Step, warmup_steps: int = 3) -> None:
        if not torch.cuda.is_available():
            raise Unsupported("CUDA graphs need a CUDA GPU", hint="use mode eager")
        self.layers = step.layers
        self._step = step
        self._graph = torch.cuda.CUDAGraph(keep_graph=True)  # so that its kernels can be named
        try:
            _warm_up(step, warmup_steps)
            step.reset()
            with torch.cuda.graph(self._graph, pool=torch.cuda.graph_pool_handle()):
                self._output = step()
            self._graph.instantiate()  # a kept graph would leave it to the first replay
        except torch.OutOfMemoryError as e:
            raise DoesNotFit(f"no memory left to capture the step: {e}") from e
        except RuntimeError as e:
            raise Unsupported(
                f"the step cannot be captured in a CUDA graph: {e}",
                hint="a host synchronisation or a length read from a shape; mode eager runs it",
            ) from e
        step.reset()

    def __call__(self) -> Tensor | tuple[Tensor, ...]:
        """Replay the step on the next row of its table."""
        self._graph.replay()
        return self._output

    def reset(self) -> None:
        """Back to the first row of the table and the state after prefill."""
        self._step.reset()

    def kernels(self) -> tuple[str, ...]:
        """Names of the kernels that a replay launches, sorted, each as often as it is launched.

        Of C++ kernels the mangled names. Empty where the driver does not tell; `unnamed` says why.
        """
        return self._kernel_list().names

    def unnamed(self) -> str:
        """Why the driver does not tell the kernels; empty where it does."""
        return self._kernel_list().unknown

    def _kernel_list(self) -> KernelList:
        return kernel_list(self._graph.raw_cuda_graph())


def _warm_up(step: Step, steps: int) -> None:
    """Run on a side stream, as capture will: libraries and kernels settle their workspaces."""
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(steps):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
