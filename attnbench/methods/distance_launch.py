"""A bias by distance as the kernels take it, and the operation that a model is trained with."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from attnbench.errors import Unsupported
from attnbench.kernels.distance_bias import BiasForm, HeadNumbers, Kind
from attnbench.methods.cy_sequence import S20
from attnbench.methods.distance_bias import UNBOUNDED, Coefficients, DistanceRule, HeadBias

LEAST_TABLE = 3  # three ratios begin the recurrence


def form_of(rule: DistanceRule, reach: tuple[int, ...]) -> BiasForm:
    """What a kernel is compiled for. Raises Unsupported for a rule that no kernel has."""
    bounded = min(reach) < UNBOUNDED
    if rule.sieve:
        raise Unsupported(
            "a sieve needs a table of all distances, which the kernels do without",
            hint="use impl=torch",
        )
    if rule.series is None:
        kind = Kind.LINE if rule.kind == "line" else Kind.NONE
        return BiasForm(kind, rule.curved, bounded, rule.shift)
    series = rule.series
    kind = Kind.SERIES
    if series.tail == "exact":
        kind = Kind.RECURRENCE
        if series.sequence != S20 or series.exact_window < LEAST_TABLE:
            raise Unsupported(
                "the kernel's recurrence is that of S20, begun from an exact window of 3 at least",
                hint="use impl=torch, or tail=asymptotic",
            )
    return BiasForm(
        kind,
        rule.curved,
        bounded,
        rule.shift,
        series.exact_window,
        series.sequence.log_growth,
        series.sequence.exponent,
        series.log_constant,
    )


def table_of(rule: DistanceRule, device: torch.device) -> Tensor:
    """ln S of the exact window, float32; one number that nothing reads where there is none."""
    known = (0.0,) if rule.series is None else rule.series.exact
    return torch.tensor(known, dtype=torch.float32, device=device)


def reach_of(reach: tuple[int, ...], device: torch.device) -> Tensor:
    """int32 [H]."""
    return torch.tensor(reach, dtype=torch.int32, device=device)


def numbers_of(bias: HeadBias) -> HeadNumbers:
    """The heads' numbers in float32."""
    slope, curvature, gain = (number.float().contiguous() for number in bias.numbers)
    return HeadNumbers(slope, curvature, gain, reach_of(bias.reach, slope.device))


FormFields = tuple[int, bool, bool, int, int, float, float, float]


def fields_of(form: BiasForm) -> FormFields:
    """A form as an operation takes it."""
    return (int(form.kind), form.curved, form.bounded, form.shift, form.last, *form.tail())


@torch.library.custom_op("attnbench::distance_attention", mutates_args=())
def distance_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    slope: Tensor,
    curvature: Tensor,
    gain: Tensor,
    reach: Tensor,
    table: Tensor,
    kind: int,
    curved: bool,
    bounded: bool,
    shift: int,
    last: int,
    growth: float,
    exponent: float,
    constant: float,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Causal attention with the bias: the output, and the logarithms of the sums of weights."""
    from attnbench.kernels.distance_forward import distance_forward

    form = BiasForm(Kind(kind), curved, bounded, shift, last, growth, exponent, constant)
    numbers = HeadNumbers(slope, curvature, gain, reach)
    return distance_forward(q, k, v, form, numbers, table, scale)


@distance_attention.register_fake
def _(q: Tensor, *rest: object) -> tuple[Tensor, Tensor]:
    del rest
    return torch.empty_like(q), q.new_empty(q.shape[:3], dtype=torch.float32)


@torch.library.custom_op("attnbench::distance_attention_backward", mutates_args=())
def distance_attention_backward(
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    slope: Tensor,
    curvature: Tensor,
    gain: Tensor,
    reach: Tensor,
    table: Tensor,
    kind: int,
    curved: bool,
    bounded: bool,
    shift: int,
    last: int,
    growth: float,
    exponent: float,
    constant: float,
    scale: float,
    learns: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v, and of slope, curvature and gain [3,H]."""
    from attnbench.kernels.distance_backward import distance_backward

    form = BiasForm(Kind(kind), curved, bounded, shift, last, growth, exponent, constant)
    numbers = HeadNumbers(slope, curvature, gain, reach)
    return distance_backward(dout, q, k, v, out, lse, form, numbers, table, scale, learns=learns)


@distance_attention_backward.register_fake
def _(dout: Tensor, q: Tensor, k: Tensor, v: Tensor, *rest: object) -> tuple[Tensor, ...]:
    del dout, rest
    numbers = q.new_empty((3, q.shape[1]), dtype=torch.float32)
    return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v), numbers


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, slope, curvature, gain, reach, table, *ctx.form = inputs
    ctx.save_for_backward(q, k, v, *output, slope, curvature, gain, reach, table)


def _gradients(ctx: Any, dout: Tensor, dlse: Tensor) -> tuple[Tensor | None, ...]:
    del dlse  # nobody differentiates the sums of weights
    learns = any(ctx.needs_input_grad[3:6])
    operation: Any = torch.ops.attnbench.distance_attention_backward
    dq, dk, dv, dnumbers = operation(dout.contiguous(), *ctx.saved_tensors, *ctx.form, learns)
    heads = dnumbers.unbind(0) if learns else (None, None, None)
    return dq, dk, dv, *heads, *(None,) * (len(ctx.form) + 2)


distance_attention.register_autograd(_gradients, setup_context=_keep)


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    numbers: Coefficients,
    reach: Tensor,
    table: Tensor,
    form: FormFields,
    scale: float,
) -> Tensor:
    """q [B,H,L,D], k and v [B,Hkv,L,D] -> [B,H,L,D], with gradients to all of them and to the
    heads' numbers [H]."""
    operation: Any = torch.ops.attnbench.distance_attention
    heads = (number.float() for number in numbers)
    out: Tensor = operation(q, k, v, *heads, reach, table, *form, scale)[0]
    return out
