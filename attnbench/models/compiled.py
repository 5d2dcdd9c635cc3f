"""Mode compiled: the parts of a decoder compiled once, attention in them one opaque operation.

Every decoder layer is compiled by itself, so that layers of a kind share one graph; rotary angles
and the last norm too. Nothing is compiled outside `engaged`: prefill and eager steps of the same
model stay as they are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

from attnbench.errors import Unsupported
from attnbench.kernels.product_launch import ProductShape
from attnbench.models.few_rows import Launches, OwnProducts, ProductSurvey, by_kernel, launched_so
from attnbench.models.opaque import NUMBER
from attnbench.models.siblings import InTurn, OneProduct, merged_siblings

# What an opaque operation was given and returned is looked at after the step: no buffer of the
# graph is used twice. Whether the few rows of a product are padded, by a kernel more, would be
# chosen by timing it once, by chance: on an H100 the same step had 201 kernels or 217 (1.323 or
# 1.349 ms; runs 8175bbb7abec and 1e105fedfc2f).
OPTIONS = {"allow_buffer_reuse": False, "inplace_buffers": False, "shape_padding": False}


class CompiledModel:
    """A model whose decoder can be run compiled; made by `compiled_model`.

    Products with a launch run by the project's own kernels, the others by torch's library.
    """

    def __init__(
        self, module: nn.Module, launches: Launches, survey: ProductSurvey | None = None
    ) -> None:
        self._launches = launches
        self.products: Counter[ProductShape] = Counter()  # of a step, by own kernels
        own = [OwnProducts(frozenset(launches))] if launches else []
        changes = (OneProduct(), *([] if survey is None else [survey]), *own)
        options: dict[str, Any] = {**OPTIONS, "post_grad_custom_pre_pass": InTurn(*changes)}
        self._calls: dict[nn.Module, Callable[..., Any]] = {
            part: torch.compile(part._call_impl, fullgraph=True, dynamic=False, options=options)
            for part in compiled_parts(module)
        }
        head = module.get_output_embeddings()  # type: ignore[operator]
        if type(head) is nn.Linear and (call := by_kernel(head, launches)) is not None:
            self._calls[head] = call
        self._sealed = False
        self.graphs = 0  # compiled so far

    def relaunch(self, launches: Launches) -> None:
        """The same products launched in another way, from the next step on."""
        if launches.keys() != self._launches.keys():
            raise ValueError("other products need the model compiled anew")
        self._launches = launches

    @contextmanager
    def engaged(self) -> Iterator[None]:
        """Calls of the model run compiled; once `seal`ed, `Unsupported` where that would compile
        anything again."""
        for part, call in self._calls.items():
            part._compiled_call_impl = call
        try:
            stance = torch.compiler.set_stance("fail_on_recompile" if self._sealed else "default")
            with stance, launched_so(self._launches) as calls:
                yield
                self.products = calls or self.products  # of contexts within contexts the innermost
        except RuntimeError as error:
            if "recompile" not in str(error):
                raise
            raise Unsupported(
                f"the arm would have its layers compiled again: {error}",
                hint="it changes what the model's layers see; mode graph runs it",
            ) from error
        finally:
            for part in self._calls:
                part._compiled_call_impl = None

    def seal(self, step: Callable[[], Tensor]) -> None:
        """Compile all that a step needs, by running it; from then on nothing is compiled.

        Raises `Unsupported` where the model cannot be compiled.
        """
        before = counters["stats"]["unique_graphs"]
        try:
            with self.engaged():
                step()
        except (torch._dynamo.exc.TorchDynamoException, torch._inductor.exc.InductorError) as error:
            raise Unsupported(
                f"the model's layers cannot be compiled: {error}", hint="use --mode graph"
            ) from error
        self.graphs = counters["stats"]["unique_graphs"] - before
        self._sealed = True
        unused = [shape for shape in self._launches if shape not in self.products]
        if unused:
            raise Unsupported(
                f"a kernel was chosen for products that the compiled model does not have: {unused}",
                hint="`attnbench methods tune-products` measures those of this model anew",
            )


@contextmanager
def compiled_model(module: nn.Module, launches: Launches | None = None) -> Iterator[CompiledModel]:
    """The model ready to run compiled, for the length of the context; `launches`: the products that
    run by the project's own kernels."""
    with ready_to_compile(module):
        yield CompiledModel(module, launches or {})


@contextmanager
def ready_to_compile(module: nn.Module) -> Iterator[None]:
    """Siblings merged and layers numbered, for the length of the context.

    What was compiled in it is forgotten at its end: the same layers compiled for one shape after
    another would sooner or later be more than the compiler keeps of a function, and then refused.
    """
    attention = [part for part in module.modules() if isinstance(_number(part), int)]
    with ExitStack() as stack:
        for part in attention:
            setattr(part, NUMBER, torch.tensor(_number(part)))
            stack.callback(delattr, part, NUMBER)
        stack.enter_context(merged_siblings(module))
        stack.callback(torch.compiler.reset)
        yield


def compiled_parts(module: nn.Module) -> list[nn.Module]:
    """Decoder layers, and what stands beside them between embedding and head: not torch's own
    modules, which are one kernel each as it is."""
    decoder: nn.Module = module.get_decoder()  # type: ignore[operator]
    parts: list[nn.Module] = []
    for child in decoder.children():
        if isinstance(child, nn.ModuleList):
            parts += child
        elif not type(child).__module__.startswith("torch.nn."):
            parts.append(child)
    return parts


def _number(part: nn.Module) -> object:
    return getattr(part, "layer_idx", None)
