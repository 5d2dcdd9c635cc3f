"""Products of few rows by the project's own kernels, where a table names one: `attnbench::product`.

A decode step multiplies a row a sequence with every weight. In a compiled model a pass of the
compiler puts this operation in the place of such a product and, where the table's entry says so, of
what stands around it: RMS normalisation before, SiLU and the product of gate and up, or the
residual's sum after. Each of those is a kernel less, and its time is hidden behind the weights. A
product without an entry stays as it is.

The operation looks up how the kernel is launched, as attention looks up the arm.
"""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._inductor.custom_graph_pass import CustomGraphPass, get_hash_for_files

from attnbench.errors import Unsupported
from attnbench.kernels.product_launch import PLAIN, ProductLaunch, ProductShape, form_of
from attnbench.kernels.products import product
from attnbench.models.surroundings import Norm, gate_of, norm_of, residual_of

aten = torch.ops.aten
Launches = Mapping[ProductShape, ProductLaunch]


class Chosen:
    """How each product is launched while a compiled model is engaged, and how often each was."""

    def __init__(self) -> None:
        self.launches: Launches = {}
        self.calls: Counter[ProductShape] = Counter()


chosen = Chosen()


@torch.library.custom_op("attnbench::product", mutates_args=())
def few_rows(
    x: Tensor,
    weights: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    norm: Tensor | None,
    epsilon: float,
    gated: bool,
) -> Tensor:
    """See `kernels.products.product`; raises `Unsupported` where there is no launch for it."""
    form = form_of(norm=norm is not None, gated=gated, residual=residual is not None)
    shape = ProductShape(x.shape[0], weights.shape[0], x.shape[1], form)
    launch = chosen.launches.get(shape)
    if launch is None:
        raise Unsupported(f"no kernel was chosen for a product {shape}", hint="use --mode graph")
    chosen.calls[shape] += 1
    return product(
        x,
        weights,
        launch=launch,
        bias=bias,
        residual=residual,
        norm=norm,
        epsilon=epsilon,
        gated=gated,
    )


@few_rows.register_fake
def _(
    x: Tensor,
    weights: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    norm: Tensor | None,
    epsilon: float,
    gated: bool,
) -> Tensor:
    del bias, residual, norm, epsilon
    return x.new_empty(x.shape[0], weights.shape[0] // (2 if gated else 1))


@contextmanager
def launched_so(launches: Launches) -> Iterator[Counter[ProductShape]]:
    """Products are launched as `launches` say, for the length of the context, and counted."""
    before = chosen.launches, chosen.calls
    chosen.launches, chosen.calls = launches, Counter()
    try:
        yield chosen.calls
    finally:
        chosen.launches, chosen.calls = before


def by_kernel(head: nn.Linear, launches: Launches) -> Callable[[Tensor], Tensor] | None:
    """What to call in the place of a model's head, where there is a launch for its product."""
    columns, depth = head.weight.shape
    rows = {s.rows for s in launches if s == ProductShape(s.rows, columns, depth)}
    if not rows:
        return None

    def call(x: Tensor) -> Tensor:
        flat = x.reshape(-1, depth)
        if flat.shape[0] not in rows:
            raise Unsupported(
                f"the head's kernel was chosen for {sorted(rows)} rows, and there are "
                f"{flat.shape[0]}"
            )
        operation: Any = torch.ops.attnbench.product
        out: Tensor = operation(flat, head.weight, head.bias, None, None, 0.0, False)
        return out.view(*x.shape[:-1], columns)

    return call


@dataclass(frozen=True)
class _Site:
    """A product in a graph: `last` is the node whose value the operation gives."""

    node: fx.Node
    x: fx.Node
    weights: fx.Node
    bias: fx.Node | None
    last: fx.Node
    norm: Norm | None = None
    residual: fx.Node | None = None
    gated: bool = False

    @property
    def shape(self) -> ProductShape:
        """The key of its entry."""
        rows, depth = self.x.meta["val"].shape
        form = form_of(
            norm=self.norm is not None, gated=self.gated, residual=self.residual is not None
        )
        return ProductShape(rows, self.weights.meta["val"].shape[0], depth, form)


class OwnProducts(CustomGraphPass):
    """A pass of the compiler: products that have a launch are replaced by the operation."""

    def __init__(self, shapes: frozenset[ProductShape]) -> None:
        self._shapes = shapes

    def __call__(self, graph: fx.Graph) -> None:
        """Replace what the shapes say; of two forms of a product the one that does more."""
        for node in list(graph.nodes):
            site = _site(node)
            forms = () if site is None else _forms(site)
            found = next((form for form in forms if form.shape in self._shapes), None)
            if found is not None:
                _replace(graph, found)
        graph.eliminate_dead_code()

    def uuid(self) -> object:
        """What compiled graphs are kept under: the shapes, and the source of the pass."""
        files = (__file__, norm_of.__code__.co_filename)
        return get_hash_for_files(files), sorted(map(repr, self._shapes))


class ProductSurvey(CustomGraphPass):
    """A pass that changes nothing, and keeps what each product could be: what does most first."""

    def __init__(self) -> None:
        self.sites: list[tuple[ProductShape, ...]] = []

    def __call__(self, graph: fx.Graph) -> None:
        """Look at every product."""
        for node in graph.nodes:
            site = _site(node)
            if site is not None:
                self.sites.append(tuple(form.shape for form in _forms(site)))

    def uuid(self) -> object:
        """Never the same: a graph from a cache was not looked at."""
        return secrets.token_hex(16)


def _site(node: fx.Node) -> _Site | None:
    """A product with weights that the graph is given, as rows of outputs [N,K]."""
    packet = getattr(node.target, "overloadpacket", None)
    if node.op != "call_function" or packet not in (aten.mm, aten.addmm) or node.kwargs:
        return None
    *bias, x, transposed = node.args
    weights = _transposed(transposed)
    if weights is None or not isinstance(x, fx.Node) or "val" not in x.meta:
        return None
    if bias and (not isinstance(bias[0], fx.Node) or bias[0].meta["val"].dim() != 1):
        return None
    return _Site(node, x, weights, bias[0] if bias else None, node)  # type: ignore[arg-type]


def _transposed(node: object) -> fx.Node | None:
    """What is given to the graph and transposed here: a weight, not something computed."""
    packet = getattr(getattr(node, "target", None), "overloadpacket", None)
    if not isinstance(node, fx.Node) or packet not in (aten.permute, aten.t):
        return None
    given = node.args[0]
    if not isinstance(given, fx.Node) or given.op not in ("placeholder", "get_attr"):
        return None
    return given if given.meta["val"].dim() == 2 else None


def _forms(site: _Site) -> Iterator[_Site]:
    """The product with all that can be done besides, with less of it, and alone."""
    norm = norm_of(site.x)
    gate = gate_of(site.node)
    residual = None if gate else residual_of(site.node)
    whole = site
    if gate is not None:
        whole = replace(whole, last=gate, gated=True)
    if residual is not None:
        whole = replace(whole, last=residual.total, residual=residual.other)
    if norm is not None:
        yield replace(whole, norm=norm)
    if whole.shape.form != PLAIN:
        yield whole
    if norm is not None and whole is not site:
        yield replace(site, norm=norm)
    yield site


def _replace(graph: fx.Graph, site: _Site) -> None:
    rows, columns = site.node.meta["val"].shape
    columns = columns // 2 if site.gated else columns
    with graph.inserting_before(site.last):

        def flat(node: fx.Node, width: int) -> fx.Node:
            return _made(graph, aten.reshape.default, node, [rows, width])

        depth = site.x.meta["val"].shape[1]
        x = site.x if site.norm is None else flat(site.norm.x, depth)
        residual = None if site.residual is None else flat(site.residual, columns)
        made = _made(
            graph,
            torch.ops.attnbench.product.default,
            x,
            site.weights,
            site.bias,
            residual,
            None if site.norm is None else site.norm.weight,
            0.0 if site.norm is None else site.norm.epsilon,
            site.gated,
        )
        shaped = _made(graph, aten.reshape.default, made, list(site.last.meta["val"].shape))
    site.last.replace_all_uses_with(shaped)


def _made(graph: fx.Graph, target: Any, *args: Any) -> fx.Node:
    """A call in the graph, with what it gives as far as shapes go."""
    node = graph.call_function(target, args)
    values = fx.node.map_arg(args, lambda each: each.meta["val"])
    node.meta["val"] = target(*values)
    return node
