"""Linear projections of the same input computed as one product, while the model is compiled.

Query, key and value of a token are three products with one input, gate and up are two. One product
with all their weights reads the same bytes in fewer, longer stretches. The weights are moved into
one tensor and stay what they were, each a view of its part; in a call that is not compiled every
projection is the product with its own part.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, fx, nn
from torch._inductor.custom_graph_pass import CustomGraphPass, get_hash_for_files
from torch.nn import functional

SIBLINGS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
aten = torch.ops.aten
PURE = (aten.view, aten.reshape, aten.permute, aten.t, aten.mm, aten.addmm, aten.bmm)


class Sibling(nn.Module):
    """A linear projection whose weight [out, in] is rows `start` to `stop` of a common one."""

    def __init__(
        self, linear: nn.Linear, weights: Tensor, biases: Tensor | None, start: int
    ) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias
        self.start, self.stop = start, start + linear.out_features
        self.weights, self.biases = weights, biases

    def forward(self, x: Tensor) -> Tensor:
        """x [.., in] -> [.., out]."""
        if not torch.compiler.is_compiling():
            return functional.linear(x, self.weight, self.bias)
        return functional.linear(x, self.weights, self.biases)[..., self.start : self.stop]


@contextmanager
def merged_siblings(module: nn.Module) -> Iterator[int]:
    """Merge what can be merged for the length of the context; how many products became one each."""
    merged = [
        (parent, dict(zip(names, linears, strict=True)))
        for parent in module.modules()
        for names in SIBLINGS
        if (linears := _linears(parent, names))
    ]
    for parent, named in merged:
        for name, sibling in _siblings(named).items():
            setattr(parent, name, sibling)
    try:
        yield len(merged)
    finally:
        for parent, named in merged:
            for name, linear in named.items():
                setattr(parent, name, linear)


def _linears(parent: nn.Module, names: tuple[str, ...]) -> list[nn.Linear]:
    """The projections of those names, where all are there and alike; else none."""
    found = [getattr(parent, name, None) for name in names]
    linears = [each for each in found if type(each) is nn.Linear]
    kinds = {
        (each.in_features, each.weight.dtype, each.weight.device, each.bias is None)
        for each in linears
    }
    return linears if len(linears) == len(names) and len(kinds) == 1 else []


def _siblings(linears: dict[str, nn.Linear]) -> dict[str, Sibling]:
    weights = torch.cat([linear.weight.detach() for linear in linears.values()])
    first = next(iter(linears.values()))
    biases = None
    if first.bias is not None:
        biases = torch.cat([linear.bias.detach() for linear in linears.values()])
    made, start = {}, 0
    for name, linear in linears.items():
        rows = slice(start, start + linear.out_features)
        linear.weight.data = weights[rows]
        if biases is not None:
            linear.bias.data = biases[rows]
        made[name] = Sibling(linear, weights, biases, start)
        start = rows.stop
    return made


class OneProduct(CustomGraphPass):
    """A pass of the compiler: what is computed twice from the same is computed once.

    Siblings each ask for their common product; this leaves one of them.
    """

    def __call__(self, graph: fx.Graph) -> None:
        """Replace every pure node by the first one like it."""
        first: dict[tuple[object, ...], fx.Node] = {}
        for node in list(graph.nodes):
            packet = getattr(node.target, "overloadpacket", None)
            if node.op != "call_function" or packet not in PURE:
                continue
            key = (node.target, repr(node.args), repr(sorted(node.kwargs.items())))
            like = first.setdefault(key, node)
            if like is not node:
                node.replace_all_uses_with(like)
                graph.erase_node(node)

    def uuid(self) -> object:
        """What compiled graphs are kept under: the source of this file."""
        return get_hash_for_files((__file__,))


class InTurn(CustomGraphPass):
    """Several passes, one after the other."""

    def __init__(self, *passes: CustomGraphPass) -> None:
        self._passes = passes

    def __call__(self, graph: fx.Graph) -> None:
        """Each of them."""
        for each in self._passes:
            each(graph)

    def uuid(self) -> object:
        """What compiled graphs are kept under: all of theirs."""
        return [each.uuid() for each in self._passes]
