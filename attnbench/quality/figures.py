"""The figures of one arm's quality, computed from its raw samples with numpy alone."""

from __future__ import annotations

import numpy as np

from attnbench.protocol.bands import ABLE, LOGIT_STEPS, NEEDLES, PERPLEXITY_WINDOWS
from attnbench.quality.samples import Floats, GateArrays
from attnbench.quality.worst import lowest_head, norm_ratio_heads
from attnbench.stats.student import mean_interval

LEVEL = 0.95  # of the intervals

Figures = dict[str, float]


def figures(arrays: GateArrays) -> Figures:
    """Every figure by name; one that cannot be computed from finite samples is absent.

    Samples that are not finite are counted in `non_finite` and enter nothing else.
    """
    bad = sum(map(_non_finite, (arrays.cosine, arrays.kl_nats, arrays.needle_nats)))
    found = {
        "non_finite": float(bad),
        "deterministic": float(arrays.deterministic[0]),
        "kept_share": _mean(arrays.kept_share),
        **_outputs(arrays),
        **_nulls(arrays),
        **_kept_mass(arrays),
        **_logits(arrays),
        **_needles(arrays),
        **_reading(arrays),
    }
    return {name: value for name, value in found.items() if np.isfinite(value)}


def _outputs(arrays: GateArrays) -> Figures:
    lowest, (ratio_low, ratio_high) = lowest_head(arrays), norm_ratio_heads(arrays)
    return {
        "cosine_mean": _mean(arrays.cosine),
        "cosine_p5": _percentile(arrays.cosine, 5),
        "cosine_p1": _percentile(arrays.cosine, 1),
        "cosine_min": _percentile(arrays.cosine, 0),
        "cosine_lowest_head": lowest.value,
        "relative_l2_mean": _mean(arrays.relative_l2),
        "relative_l2_max": _percentile(arrays.relative_l2, 100),
        "norm_ratio_low": ratio_low.value,
        "norm_ratio_high": ratio_high.value,
        "floor_cosine": _mean(arrays.floor_cosine),
        "floor_relative_l2": _mean(arrays.floor_relative_l2),
        "math_flash_cosine": _mean(arrays.math_flash_cosine),
        "math_flash_relative_l2": _mean(arrays.math_flash_relative_l2),
    }


def _nulls(arrays: GateArrays) -> Figures:
    """Mean cosines of the null models, and where the arm stands between random and oracle."""
    names = ("null_uniform", "null_recent", "null_value_norm", "null_random", "null_oracle")
    found = {name: _mean(getattr(arrays, name)) for name in names}
    return found | (_skill(arrays) if arrays.null_random.size and arrays.null_oracle.size else {})


def _skill(arrays: GateArrays) -> Figures:
    """(arm - random) / (oracle - random) of mean cosines, with t over windows of text."""
    parts = (arrays.cosine, arrays.null_random, arrays.null_oracle)
    skill = _place(*parts)
    by_window = [_place(*window) for window in zip(*parts, strict=True)]
    if len(by_window) < 2 or not np.isfinite([skill, *by_window]).all():
        return {"skill": skill}
    half_width = mean_interval(by_window, LEVEL).half_width
    return {"skill": skill, "skill_low": skill - half_width, "skill_high": skill + half_width}


def _place(own: Floats, random: Floats, oracle: Floats) -> float:
    """Where the arm stands between the two; NaN where there is no room between them."""
    room = _mean(oracle) - _mean(random)
    return (_mean(own) - _mean(random)) / room if room else np.nan


def _kept_mass(arrays: GateArrays) -> Figures:
    return {
        "kept_mass_mean": _mean(arrays.kept_mass),
        "kept_mass_min": _percentile(arrays.kept_mass, 0),
    }


def _logits(arrays: GateArrays) -> Figures:
    if not arrays.kl_nats.size or arrays.kl_nats.shape[1] < LOGIT_STEPS:
        return {}
    found = {
        "logit_steps": float(arrays.kl_nats.shape[1]),
        "kl_mean_nats": _mean(arrays.kl_nats),
        "kl_p99_nats": _percentile(arrays.kl_nats, 99),
        "top1_agreement": _mean(arrays.agree),
    }
    return found | (_perplexity(arrays) if len(arrays.nll_nats) >= PERPLEXITY_WINDOWS else {})


def _perplexity(arrays: GateArrays) -> Figures:
    """The change, paired by text offset, with t over offsets."""
    by_offset = (arrays.nll_nats - arrays.nll_sdpa_nats).mean(-1, dtype=np.float64)
    if not np.isfinite(by_offset).all():
        return {}
    interval = mean_interval(by_offset.tolist(), LEVEL)
    return {
        "perplexity_offsets": float(len(by_offset)),
        "perplexity_change": float(np.expm1(interval.mean)),
        "perplexity_change_low": float(np.expm1(interval.low)),
        "perplexity_change_high": float(np.expm1(interval.high)),
        "perplexity_sdpa": float(np.exp(_mean(arrays.nll_sdpa_nats))),
    }


def _needles(arrays: GateArrays) -> Figures:
    """Facts retrieved (the whole answer ranked first), and how probable the answer was.

    The change that the gate judges is there only where the model retrieves facts under SDPA.
    """
    asked = len(arrays.needle_rank)
    if not asked:
        return {}
    hits, hits_sdpa = (
        int((ranks == 1).sum()) for ranks in (arrays.needle_rank, arrays.needle_rank_sdpa)
    )
    found = {
        "needles": float(asked),
        "needle_hits": hits / asked,
        "needle_hits_sdpa": hits_sdpa / asked,
        "needle_rank_median": _percentile(arrays.needle_rank, 50),
        "needle_rank_worst": _percentile(arrays.needle_rank, 100),
        "needle_probability": _mean(np.exp(-arrays.needle_nats)),
        "needle_probability_sdpa": _mean(np.exp(-arrays.needle_nats_sdpa)),
    }
    able = asked >= NEEDLES and hits_sdpa >= ABLE * asked
    return found | ({"needle_change": (hits - hits_sdpa) / asked} if able else {})


def _reading(arrays: GateArrays) -> Figures:
    """How well the model predicts the text under SDPA: half of its tokens are at least as probable
    as one among `text_choices`. A model that guesses has its vocabulary there."""
    if not arrays.text_nats.size:
        return {}
    return {
        "text_choices": float(np.exp(_percentile(arrays.text_nats, 50))),
        "text_perplexity": float(np.exp(_mean(arrays.text_nats))),
        "vocabulary": float(arrays.vocabulary[0]),
    }


def uniform_figures(arrays: GateArrays) -> Figures:
    """The cosine figures of the null model that knows nothing of q and k: the mean of all values.

    Its samples are means over steps already, so its 1st percentile is over windows and heads.
    """
    null = arrays.null_uniform
    return {
        "cosine_mean": _mean(null),
        "cosine_p1": _percentile(null, 1),
        "cosine_lowest_head": float(null.mean(0, dtype=np.float64).min()),
    }


def _non_finite(samples: Floats) -> int:
    return int(np.count_nonzero(~np.isfinite(samples)))


def _mean(samples: Floats) -> float:
    finite = samples[np.isfinite(samples)]
    return float(finite.mean(dtype=np.float64)) if finite.size else np.nan


def _percentile(samples: Floats, percent: float) -> float:
    finite = samples[np.isfinite(samples)]
    return float(np.percentile(finite.astype(np.float64), percent)) if finite.size else np.nan
