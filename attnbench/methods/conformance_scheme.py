"""The checks of what a REPLACEMENT method gives to a model that is trained from scratch.

A scheme must train the function that the method defines: over a full sequence, with its gradients,
without looking ahead, and the same again when it decodes with what it has learned.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from attnbench.methods.base import CacheLength, CacheView, LayerShape, Method, MethodLayer
from attnbench.methods.conformance import BOUNDS, Check, relative_error
from attnbench.methods.scheme import Scheme, SchemeConfig

TOKENS, SHORT, LONG = 40, 96, 640
LOOKED_AT = (0, 1, 13, 14, TOKENS - 1)  # the first, and both sides of CY-Sieve's exact window
PROMPT = 30
LAYER = 1
STEP = 1e-2  # of a central difference
GRADIENT_BOUND = 0.02  # of its norm: a difference of rounded outputs is no better
FINE_STEP, FINE_BOUND = 1e-5, 1e-3  # where the definition is differenced in float64
MOVED = 0.3  # standard deviation of what is added to parameters, as if they had been trained


@dataclass(frozen=True)
class Rows:
    """One sequence batch for one layer: q [B,H,L,D], k and v [B,Hkv,L,D]."""

    q: Tensor
    k: Tensor
    v: Tensor

    @staticmethod
    def drawn(
        config: SchemeConfig, tokens: int, dtype: torch.dtype, batch: int = 1, seed: int = 0
    ) -> Rows:
        """Standard normal, from a seed, on the CPU first."""
        generator = torch.Generator().manual_seed(seed)

        def draw(heads: int) -> Tensor:
            rows = torch.randn((batch, heads, tokens, config.head_dim), generator=generator)
            return rows.to(device=config.device, dtype=dtype)

        return Rows(draw(config.heads), draw(config.kv_heads), draw(config.kv_heads))

    def all(self) -> tuple[Tensor, Tensor, Tensor]:
        """q, k and v."""
        return self.q, self.k, self.v

    def moved(self, by: Rows, step: float) -> Rows:
        """A step along another one."""
        return Rows(self.q + step * by.q, self.k + step * by.k, self.v + step * by.v)


def config_of(device: torch.device, longest: int = LONG) -> SchemeConfig:
    """Two layers of eight heads over two KV heads."""
    return SchemeConfig(2, 8, 2, 64, 512, longest, device)


def shape_of(config: SchemeConfig, dtype: torch.dtype, capacity: int, batch: int) -> LayerShape:
    """The layer that is looked at."""
    return LayerShape(
        batch=batch,
        heads=config.heads,
        kv_heads=config.kv_heads,
        head_dim=config.head_dim,
        capacity=capacity,
        dtype=dtype,
        device=config.device,
        layer=LAYER,
        scale=config.scale,
    )


def full_sequence(method: Method, dtype: torch.dtype, device: torch.device) -> Check:
    """Every position of a full sequence is what the definition says of the tokens up to it."""
    config = config_of(device)
    rows = Rows.drawn(config, TOKENS, dtype, batch=2)
    with torch.no_grad():
        out = method.scheme(config).attend(LAYER)(*rows.all())
    shape = shape_of(config, dtype, TOKENS, batch=2)
    errors = {
        at: relative_error(out[:, :, at : at + 1], defined(method, rows, at, shape))
        for at in LOOKED_AT
    }
    worst = max(errors, key=lambda at: errors[at])
    return Check.measured("", errors[worst], BOUNDS[dtype], f"worst at position {worst}")


def defined(method: Method, rows: Rows, at: int, shape: LayerShape) -> Tensor:
    """The definition's output at one position: [B,H,1,D]."""
    until = slice(0, at + 1)
    query = rows.q[:, :, at : at + 1]
    return method.reference(query, rows.k[:, :, until], rows.v[:, :, until], shape)


def no_look_ahead(method: Method, dtype: torch.dtype, device: torch.device) -> Check:
    """What comes later changes nothing."""
    config = config_of(device)
    rows, other = (Rows.drawn(config, TOKENS, dtype, seed=seed) for seed in (0, 1))
    half = TOKENS // 2
    mixed = Rows(
        *(
            torch.cat((kept[:, :, :half], later[:, :, half:]), dim=2)
            for kept, later in zip(rows.all(), other.all(), strict=True)
        )
    )
    attend = method.scheme(config).attend(LAYER)
    with torch.no_grad():
        outputs = [attend(*r.all())[:, :, :half] for r in (rows, mixed)]
    return Check.measured("", relative_error(outputs[1], outputs[0].double()), BOUNDS[dtype] / 10)


def gradients(method: Method, dtype: torch.dtype, device: torch.device) -> Check:
    """Gradients to q, k and v agree with a central difference of the definition."""
    del dtype  # differences of 16-bit numbers say nothing
    config = config_of(device)
    rows, way, weight = (Rows.drawn(config, TOKENS, torch.float32, seed=seed) for seed in range(3))
    asked = Rows(*(x.clone().requires_grad_() for x in rows.all()))
    out = method.scheme(config).attend(LAYER)(*asked.all())
    loss = (out * weight.q).sum()
    found = torch.autograd.grad(loss, asked.all(), allow_unused=True, materialize_grads=True)
    ways = way.all()
    slope = sum(float((g.double() * w.double()).sum()) for g, w in zip(found, ways, strict=True))
    shape = shape_of(config, torch.float64, TOKENS, batch=1)
    exact = Rows(*(x.double() for x in rows.all()))
    along = Rows(*(x.double() for x in ways))
    ends = [
        summed(method, exact.moved(along, step), weight.q, shape)
        for step in (FINE_STEP, -FINE_STEP)
    ]
    rise = (ends[0] - ends[1]) / (2 * FINE_STEP)
    size = sum(float(g.double().square().sum()) for g in found) ** 0.5
    error = abs(slope - rise) / size if size else math.inf
    return Check.measured("", error, FINE_BOUND, "of its norm")


def summed(method: Method, rows: Rows, weight: Tensor, shape: LayerShape) -> float:
    """A weighted sum of the definition's outputs at all positions."""
    outputs = (defined(method, rows, at, shape) for at in range(TOKENS))
    parts = zip(outputs, torch.split(weight, 1, dim=2), strict=True)
    return sum(float((out * part).sum()) for out, part in parts)


def every_parameter_learns(method: Method, dtype: torch.dtype, device: torch.device) -> Check:
    """Each of the scheme's parameters gets a gradient, and that of a bias is a difference's."""
    del dtype
    config = config_of(device)
    scheme = method.scheme(config)
    if not list(scheme.parameters()):
        return Check.skipped("", "nothing is learned")
    for tokens in (SHORT, LONG):  # a bias may begin far from the newest token
        scheme.zero_grad()
        loss = through(scheme, tokens)
        if loss.requires_grad:
            loss.backward()  # type: ignore[no-untyped-call]
        still = unmoved(scheme)
        if not still:
            return Check.measured("", slope_error(scheme, tokens), GRADIENT_BOUND, "of its norm")
    return Check.measured("", len(still), 0, f"without a gradient: {', '.join(still)}")


def unmoved(scheme: Scheme) -> list[str]:
    """Parameters without a gradient."""
    return [
        name
        for name, parameter in scheme.named_parameters()
        if parameter.grad is None or not bool(parameter.grad.abs().sum() > 0)
    ]


def slope_error(scheme: Scheme, tokens: int) -> float:
    """How far the loss's slope along a random way is from what the gradients say, of their norm."""
    parameters = [p for p in scheme.parameters() if p.grad is not None]
    generator = torch.Generator().manual_seed(5)
    ways = [torch.randn(p.shape, generator=generator).to(p) for p in parameters]
    pairs = [(p.grad, w) for p, w in zip(parameters, ways, strict=True) if p.grad is not None]
    said = sum(float((g * w).sum()) for g, w in pairs)
    ends = []
    with torch.no_grad():
        for step in (STEP, -2 * STEP):
            for parameter, way in zip(parameters, ways, strict=True):
                parameter.add_(step * way)
            ends.append(float(through(scheme, tokens)))
    size = sum(float(g.square().sum()) for g, _ in pairs) ** 0.5
    return abs(said - (ends[0] - ends[1]) / (2 * STEP)) / float(size)


def through(scheme: Scheme, tokens: int) -> Tensor:
    """A weighted sum of what all layers make of the same random tokens, in float64."""
    config = scheme.config
    generator = torch.Generator().manual_seed(4)
    x = torch.randn((1, tokens, config.width), generator=generator).to(config.device)
    positions = torch.arange(tokens, device=config.device)
    embedded = scheme.embed(x, positions)
    q = embedded.view(1, tokens, config.heads, config.head_dim).transpose(1, 2)
    k, v = q[:, : config.kv_heads], q[:, config.kv_heads : 2 * config.kv_heads]
    q, k = scheme.rotate(q, k, positions)
    weight = torch.randn(q.shape, generator=generator).to(config.device)
    outputs = torch.stack([scheme.attend(layer)(q, k, v) for layer in range(config.layers)])
    return (outputs.double() * weight).sum()


def decodes_what_it_learned(method: Method, dtype: torch.dtype, device: torch.device) -> Check:
    """With parameters moved as by training, decoding continues a full sequence."""
    config = config_of(device)
    scheme = method.scheme(config)
    generator = torch.Generator().manual_seed(6)
    with torch.no_grad():
        for parameter in scheme.parameters():
            drawn = torch.randn(parameter.shape, generator=generator)
            parameter.add_(MOVED * drawn.to(parameter))
        rows = Rows.drawn(config, TOKENS, dtype, batch=2)
        expected = scheme.attend(LAYER)(*rows.all()).double()
        shape = shape_of(config, dtype, TOKENS + 8, batch=2)
        decoder = scheme.decoder(shape)
        errors = decoded_errors(decoder, rows, expected, shape)
    return Check.measured("", max(errors), 2 * BOUNDS[dtype], f"{len(errors)} tokens")


def decoded_errors(
    decoder: MethodLayer, rows: Rows, expected: Tensor, shape: LayerShape
) -> list[float]:
    """Prefill with the first tokens, decode the others one by one."""
    size = (shape.batch, shape.kv_heads, shape.capacity, shape.head_dim)
    cache = CacheView(
        torch.zeros(size, dtype=shape.dtype, device=shape.device),
        torch.zeros(size, dtype=shape.dtype, device=shape.device),
        CacheLength(shape.device, PROMPT),
    )
    cache.k[:, :, :PROMPT], cache.v[:, :, :PROMPT] = rows.k[:, :, :PROMPT], rows.v[:, :, :PROMPT]
    decoder.prefill(cache)
    errors = []
    for at in range(PROMPT, TOKENS):
        here = slice(at, at + 1)
        out = decoder.decode(rows.q[:, :, here], rows.k[:, :, here], rows.v[:, :, here])
        errors.append(relative_error(out, expected[:, :, here]))
        cache.length.advance()
    return errors


SCHEME_CHECKS = {
    "scheme: full sequence as defined": full_sequence,
    "scheme: no look ahead": no_look_ahead,
    "scheme: gradients as defined": gradients,
    "scheme: every parameter learns": every_parameter_learns,
    "scheme: decodes what it learned": decodes_what_it_learned,
}
