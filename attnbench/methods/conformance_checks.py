"""The checks of the conformance suite, each a function of a method and a trial."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from attnbench.errors import Unsupported
from attnbench.methods.base import CacheLength, CacheView, Family, Method, MethodLayer
from attnbench.methods.conformance import (
    APPENDED,
    BOUNDS,
    Check,
    NamedCheck,
    relative_error,
    worst_error,
)
from attnbench.methods.conformance_graph import check_capture, check_growth
from attnbench.methods.conformance_scheme import SCHEME_CHECKS
from attnbench.methods.conformance_share import check_share
from attnbench.methods.reference import exact_attention
from attnbench.methods.trial import Case, Trial, prefilled, storages

SMALL = Case(33, 64, 4)
LONGER = Case(127, 64, 4)
# Configurations tried on a machine where one costs seconds.
FEW_CONFIGURATIONS = 3


def planned(
    method: Method, device: torch.device, cases: Sequence[Case], dtypes: Sequence[torch.dtype]
) -> Iterator[NamedCheck]:
    """Every check by name, not yet run: parity on all cases, the others on one small case."""
    for dtype in dtypes:
        for case in cases:
            yield f"parity {case} {named(dtype)}", partial(parity, method, case, dtype, device)
    dtype = first_supported(method, device, dtypes)
    single = {
        "launch configurations": configurations,
        "full budget is exact attention": full_budget,
        "large scores stay finite": large_scores,
        "rows after the newest are not read": stale_tail,
        "order of cached tokens": permutation,
        "same input, same output": determinism,
        "upkeep changes no output": upkeep,
        "reset restores": reset,
        "inputs and cached rows untouched": inputs_untouched,
        "attended tokens as declared": check_share,
        "bytes read as declared": bytes_read,
        "state as declared": declared_state,
        "CUDA graph": check_capture,
        "growth in a CUDA graph": check_growth,
    }
    if method.family is Family.REPLACEMENT:
        single |= SCHEME_CHECKS
    for name, check in single.items():
        yield name, partial(check, method, dtype, device)


def named(dtype: torch.dtype) -> str:
    """float32, float16, bfloat16."""
    return str(dtype).removeprefix("torch.")


def first_supported(
    method: Method, device: torch.device, dtypes: Sequence[torch.dtype]
) -> torch.dtype:
    """The first dtype in which the method runs; the first of all where it runs in none."""
    for dtype in dtypes:
        try:
            method.check(SMALL.shape(dtype, device, APPENDED))
        except Unsupported:
            continue
        return dtype
    return dtypes[0]


def trial_of(
    method: Method,
    case: Case,
    dtype: torch.dtype,
    device: torch.device,
    appended: int = APPENDED,
    sharpness: float = 2.0,
) -> Trial:
    """A trial that the method supports, or `Unsupported`."""
    trial = Trial.make(case, dtype, device, appended, seed=case.tokens, sharpness=sharpness)
    method.check(trial.shape)
    return trial


def parity(method: Method, case: Case, dtype: torch.dtype, device: torch.device) -> Check:
    """Several appended tokens agree with the stateful reference."""
    trial = trial_of(method, case, dtype, device)
    error, token = worst_error(
        trial.appended_by(method.layer(trial.shape)),
        trial.appended_by(method.reference_layer(trial.shape)),
    )
    return Check.measured("", error, BOUNDS[dtype], f"worst at appended token {token}")


def configurations(method: Method, dtype: torch.dtype, device: torch.device) -> Check:
    """Every launch configuration on offer agrees with the reference."""
    trial = trial_of(method, LONGER, dtype, device)
    offered = method.configurations(trial.shape)
    if not offered:
        return Check.skipped("", "it has no launch configurations")
    tried = offered if device.type == "cuda" else offered[:FEW_CONFIGURATIONS]
    expected = list(trial.appended_by(method.reference_layer(trial.shape)))
    errors = {}
    for config in tried:
        layer = method.layer(replace(trial.shape, kernel=config))
        errors[config], _ = worst_error(trial.appended_by(layer), iter(expected))
    worst = max(errors, key=lambda config: errors[config])
    detail = f"{len(tried)} of {len(offered)}, worst {worst}"
    return Check.measured("", errors[worst], BOUNDS[dtype], detail)


def full_budget(method: Method, dtype: torch.dtype, device: torch.device) -> Check:
    """With nothing left out, the output is that of exact attention."""
    trial = trial_of(method, LONGER, dtype, device, appended=1)
    whole = method if method.family is Family.EXACT else method.full_budget(LONGER.tokens + 1)
    if whole is None:
        return Check.skipped("", "it has no budget to fill")
    step = trial.steps[0]
    expected = exact_attention(
        step.q,
        torch.cat((trial.k, step.k), dim=2),
        torch.cat((trial.v, step.v), dim=2),
        trial.shape.scale,
    )
    error = relative_error(trial.first_output(whole.layer(trial.shape)), expected)
    return Check.measured("", error, BOUNDS[dtype], whole.label)


def large_scores(method: Method, dtype: torch.dtype, device: torch.device) -> Check:
    """Scores of several hundred give no NaN and no infinity."""
    trial = trial_of(method, LONGER, dtype, device, sharpness=60.0)
    outputs = torch.stack(list(trial.appended_by(method.layer(trial.shape))))
    return Check.measured("", float((~torch.isfinite(outputs)).sum()), 0, "elements not finite")


def stale_tail(method: Method, dtype: torch.dtype, device: torch.device) -> Check:
    """What lies in the cache after the newest row changes nothing."""
    trial = trial_of(method, LONGER, dtype, device, appended=1)
    clean = trial.first_output(method.layer(trial.shape))
    for junk in (1000.0, float("nan")):
        dirty = replace(trial, tail=junk).first_output(method.layer(trial.shape))
        if not torch.equal(clean, dirty):
            return Check.measured("", relative_error(dirty, clean), 0, f"rows of {junk}")
    return Check.measured("", 0, 0)


def permutation(method: Method, dtype: torch.dtype, device: torch.device) -> Check:
    """A method whose definition does not depend on the order of cached tokens does not either."""
    trial = trial_of(method, LONGER, dtype, device, appended=1)
    moved = trial.permuted(seed=1)
    defined = [t.first_output(method.reference_layer(trial.shape)) for t in (trial, moved)]
    if relative_error(defined[1], defined[0]) > 1e-9:
        return Check.skipped("", "its definition depends on the order of tokens")
    outputs = [t.first_output(method.layer(trial.shape)) for t in (trial, moved)]
    return Check.measured("", relative_error(outputs[1], outputs[0]), 2 * BOUNDS[dtype])


def determinism(method: Method, dtype: torch.dtype, device: torch.device) -> Check:
    """Two fresh layers give the same bits."""
    trial = trial_of(method, LONGER, dtype, device)
    runs = [torch.stack(list(trial.appended_by(method.layer(trial.shape)))) for _ in range(2)]
    return Check.measured("", float((runs[0] != runs[1]).sum()), 0, "elements that differ")


def upkeep(method: Method, dtype: torch.dtype, device: torch.device) -> Check:
    """Steps after `maintain`, at whatever length, give the bits that they give without."""
    trial = trial_of(method, LONGER, dtype, device)
    plain = torch.stack(list(trial.appended_by(method.layer(trial.shape))))
    layer, cache = prefilled(method, trial)
    if type(layer).maintain is MethodLayer.maintain:
        return Check.skipped("", "it does nothing in maintain()")
    kept = []
    layer.maintain()
    for output in trial.continued(layer, cache):
        kept.append(output.clone())
        layer.maintain()
    changed = float((torch.stack(kept) != plain).sum())
    return Check.measured("", changed, 0, "elements that differ")


def reset(method: Method, dtype: torch.dtype, device: torch.device) -> Check:
    """After a reset the cache hashes as after prefill, and the same tokens give the same bits."""
    trial = trial_of(method, LONGER, dtype, device)
    layer, cache = method.layer(trial.shape), trial.cache()
    layer.prefill(cache)
    before = digest(cache)
    runs = []
    for _ in range(2):
        runs.append(torch.stack(list(trial.continued(layer, cache))))
        layer.reset()
        cache.length.set(trial.case.tokens)
        if digest(cache) != before:
            return Check.measured("", 1, 0, "the cache differs from its state after prefill")
    return Check.measured("", float((runs[0] != runs[1]).sum()), 0, "elements that differ")


def digest(cache: CacheView) -> str:
    """SHA-256 of all rows of the exact cache."""
    rows = torch.stack((cache.k, cache.v)).cpu().contiguous().view(torch.uint8)
    return hashlib.sha256(rows.numpy().tobytes()).hexdigest()


def inputs_untouched(method: Method, dtype: torch.dtype, device: torch.device) -> Check:
    """A step writes neither its inputs nor a cached row."""
    trial = trial_of(method, SMALL, dtype, device)
    layer, cache = method.layer(trial.shape), trial.cache()
    layer.prefill(cache)
    given = [tensor.clone() for step in trial.steps for tensor in (step.q, step.k, step.v)]
    for output in trial.continued(layer, cache):
        del output
    kept = [tensor for step in trial.steps for tensor in (step.q, step.k, step.v)]
    pairs = list(zip(given, kept, strict=True))
    tokens = trial.case.tokens
    pairs += [(trial.k, cache.k[:, :, :tokens]), (trial.v, cache.v[:, :, :tokens])]
    changed = sum(not torch.equal(a, b) for a, b in pairs)
    return Check.measured("", changed, 0, "tensors changed in place")


def bytes_read(method: Method, dtype: torch.dtype, device: torch.device) -> Check:
    """A step reads at most what the method keeps; an exact one reads every row it attends to."""
    trial = trial_of(method, LONGER, dtype, device, appended=1)
    layer, cache = prefilled(method, trial)
    declared = layer.bytes_read()
    state = sum(storages(layer.tensors()).values())
    tokens = cache.length.tokens + 1
    if method.family is Family.EXACT and declared < tokens * trial.shape.row_bytes:
        return Check.measured("", declared, 0, f"less than {tokens} rows")
    return Check.measured("", declared, state, "bytes read a step, of bytes kept")


def declared_state(method: Method, dtype: torch.dtype, device: torch.device) -> Check:
    """Every tensor that the layer can reach after a step is among its `tensors()`."""
    trial = trial_of(method, LONGER, dtype, device, appended=1)
    layer, _ = prefilled(method, trial)
    step = trial.steps[0]
    layer.decode(step.q, step.k, step.v)
    declared = storages(layer.tensors())
    hidden = {
        place: size
        for place, size in storages(reachable(layer, set())).items()
        if place not in declared
    }
    return Check.measured("", sum(hidden.values()), 0, "bytes kept outside tensors()")


def reachable(value: object, seen: set[int]) -> Iterator[Tensor]:
    """Tensors that an object holds, at any depth; the harness's cache length is not its own."""
    if id(value) in seen or isinstance(value, CacheLength):
        return
    seen.add(id(value))
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from reachable(item, seen)
    elif isinstance(value, list | tuple | set):
        for item in value:
            yield from reachable(item, seen)
    elif hasattr(value, "__dict__") and not isinstance(value, type):
        yield from reachable(vars(value), seen)
