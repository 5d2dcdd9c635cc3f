"""What stands around a product in a compiler's graph, recognised by its operations.

Sums of a step's few rows are computed in float32 between conversions, which are absent where the
model itself is of float32; both are recognised.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

aten, prims = torch.ops.aten, torch.ops.prims
SHAPING = (aten.reshape, aten.view)


@dataclass(frozen=True)
class Norm:
    """weight * (x / sqrt(mean(x^2) + epsilon)), over the last dimension."""

    x: fx.Node
    weight: fx.Node
    epsilon: float


@dataclass(frozen=True)
class Residual:
    """total = other + a product."""

    total: fx.Node
    other: fx.Node


def calls(node: object, *packets: Any) -> bool:
    """Whether the node calls one of these operators."""
    return isinstance(node, fx.Node) and getattr(node.target, "overloadpacket", None) in packets


def only_user(node: fx.Node) -> fx.Node | None:
    """The one node that uses this one; None where there are more, or none."""
    return next(iter(node.users)) if len(node.users) == 1 else None


def skipped(node: Any, *packets: Any) -> Any:
    """The node, or where it calls one of these operators, what that is given."""
    return node.args[0] if calls(node, *packets) else node


def norm_of(x: fx.Node) -> Norm | None:
    """The RMS normalisation that x is the result of, and nobody else uses."""
    scaled = skipped(x, *SHAPING)
    if not calls(scaled, aten.mul) or any(only_user(each) is None for each in {x, scaled}):
        return None
    for weight, normed in (scaled.args, reversed(scaled.args)):
        if not isinstance(weight, fx.Node) or not isinstance(normed, fx.Node):
            continue
        found = _normalised(skipped(normed, prims.convert_element_type))
        if found is not None and weight.op in ("placeholder", "get_attr"):
            source, epsilon = found
            if _alike(weight, source, x) and weight.meta["val"].dim() == 1:
                return Norm(source, weight, epsilon)
    return None


def _normalised(node: Any) -> tuple[fx.Node, float] | None:
    """x and epsilon of x * rsqrt(mean(x^2) + epsilon)."""
    if not calls(node, aten.mul):
        return None
    for wide, root in (node.args, reversed(node.args)):
        if not calls(root, aten.rsqrt) or not calls(root.args[0], aten.add):
            continue
        mean, epsilon = root.args[0].args
        if not calls(mean, aten.mean) or not isinstance(epsilon, float):
            continue
        last = len(mean.args) == 3 and list(mean.args[1]) == [-1] and mean.args[2]
        if last and _square_of(mean.args[0]) is wide:
            return skipped(wide, prims.convert_element_type), epsilon
    return None


def _square_of(node: Any) -> object:
    if calls(node, aten.pow) and node.args[1] == 2:
        return node.args[0]
    if calls(node, aten.mul) and node.args[0] is node.args[1]:
        return node.args[0]
    return None


def gate_of(product: fx.Node) -> fx.Node | None:
    """silu(left half) * right half of the product, where nobody uses it otherwise."""
    halves = _halves(product)
    if halves is None:
        return None
    gate, up = halves
    result = only_user(up)
    if result is None or not calls(result, aten.mul):
        return None
    others = [each for each in result.args if each is not up]
    if len(others) != 1:
        return None
    activated = skipped(others[0], prims.convert_element_type)
    wide = _silu_of(activated)
    if wide is None or skipped(wide, prims.convert_element_type) is not gate:
        return None
    return result if _alike(result, product) else None


def _halves(product: fx.Node) -> tuple[fx.Node, fx.Node] | None:
    shaped = product
    follower = only_user(product)
    if follower is not None and calls(follower, *SHAPING):
        shaped = follower
    parts = list(shaped.users)
    if len(parts) != 2 or not all(calls(part, aten.slice) for part in parts):
        return None
    last, width = shaped.meta["val"].dim() - 1, shaped.meta["val"].shape[-1]
    spans = {tuple(part.args[1:4]): part for part in parts if len(part.args) == 4}
    middle = width // 2
    lower, upper = spans.get((last, 0, middle)), spans.get((last, middle, width))
    return None if width % 2 or lower is None or upper is None else (lower, upper)


def _silu_of(node: Any) -> Any:
    """x of x / (1 + exp(-x)), or of x * sigmoid(x)."""
    if calls(node, aten.div):
        x, below = node.args
        if calls(below, aten.add) and 1 in below.args:
            grown = next(each for each in below.args if each != 1)
            if calls(grown, aten.exp) and calls(grown.args[0], aten.neg):
                return x if grown.args[0].args[0] is x else None
    if calls(node, aten.mul):
        for x, curve in (node.args, reversed(node.args)):
            if calls(curve, aten.sigmoid) and curve.args[0] is x:
                return x
    return None


def residual_of(product: fx.Node) -> Residual | None:
    """The sum of the product and something as large, where nobody else uses the product."""
    shaped = product
    follower = only_user(product)
    if follower is not None and calls(follower, *SHAPING):
        shaped, follower = follower, only_user(follower)
    if follower is None or not calls(follower, aten.add) or follower.kwargs:
        return None
    others = [each for each in follower.args if each is not shaped]
    if len(others) != 1 or not isinstance(others[0], fx.Node) or "val" not in others[0].meta:
        return None
    same = others[0].meta["val"].shape == shaped.meta["val"].shape
    return Residual(follower, others[0]) if same and _alike(others[0], follower, product) else None


def _alike(*nodes: fx.Node) -> bool:
    """Whether all are of one dtype."""
    return len({node.meta["val"].dtype for node in nodes}) == 1
