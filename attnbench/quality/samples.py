"""Raw samples of the quality gates, one arm at a time: arrays here, one npz on the wire and disk.

Axes: W windows of text, L full-attention layers, S decode steps, H query heads. Nothing here is a
statistic of a method, so every figure and verdict can be computed again from the stored bytes.
"""

from __future__ import annotations

import io
import zipfile
from dataclasses import dataclass, field, fields

import msgspec
import numpy as np
from numpy.typing import NDArray

from attnbench.errors import AttnbenchError

Floats = NDArray[np.float32]


class GateSamples(msgspec.Struct, frozen=True):
    """The samples of one arm as a compressed npz: what a worker sends and the ledger keeps."""

    npz: bytes

    def arrays(self) -> GateArrays:
        """The arrays. Raises AttnbenchError when the bytes are not such an npz."""
        try:
            with np.load(io.BytesIO(self.npz), allow_pickle=False) as stored:
                return GateArrays(**{name: stored[name] for name in stored.files})
        except (ValueError, OSError, EOFError, TypeError, zipfile.BadZipFile) as error:
            raise AttnbenchError(
                f"these are not samples of a quality gate ({error})",
                hint="the blob is damaged or of another kind; `attnbench ledger verify` tells",
            ) from error


def _not_run() -> Floats:
    return np.zeros(0, np.float32)


@dataclass(frozen=True)
class GateArrays:
    """One arm's samples, float32 unless said; a part that was not run has no elements.

    `cosine`, `relative_l2` and `norm_ratio` are [W,L,S,H], of the arm's output against SDPA's on
    the same q, k and v; `kept_share` is [W,L,S]. The rest of the local part is [W,L,H], averaged
    over steps: `floor_*` is SDPA against float64, `math_flash_*` SDPA's math backend against its
    flash backend at the last step (NaN where there is none here), `null_*` the cosine of the null
    models at the arm's own kept share (`null_random_blocks`: of a method that takes whole blocks of
    tokens, random blocks of as many). `kept_mass` [1,L,H] is of the
    first window, `most_mass` [1,L] the most that a selection of the declared share keeps there,
    `compact` [1,L] 1 where the layer reads nothing but what it keeps, and keeps no more than it
    declares. The compounded part, [W,T] over T steps inside the model: `kl_nats` (SDPA's next-token
    distribution from the arm's), `agree` (1 where both rank the same token first), `nll_nats` of
    the text's next token under the arm and under SDPA. Of the facts asked for, [F] each:
    `needle_depth` (0 is the start of the text), `needle_nats` (minus the log of the answer's
    probability) and `needle_rank` (the worst rank of a token of the answer, 1 is first) under the
    arm and under SDPA. `text_nats` [W,n] is minus the log of the probability that the model gives
    to the first tokens of each window under SDPA, one of `vocabulary` [1] tokens each. Of the first
    window, where it was mapped: `kept_map` [1,L,S,H,P] is the share of each of P bins of `map_bin`
    [1] tokens that a head attended to, NaN where there was nothing to see or the layer could not
    tell; `map_outside` [1,L] the most weight that a head gave in the last step to tokens that its
    layer did not name; `map_text` [P] the text of the bins. `bound_violations` [1,L,S,H] is the
    share of blocks with a logit above what the layer bounds it by.
    """

    context: NDArray[np.int64]  # [1], tokens before the first step
    layers: NDArray[np.int64]  # [L], the model's numbers of its full-attention layers
    deterministic: NDArray[np.bool_]  # [1], layers replayed twice gave the same values
    cosine: Floats
    relative_l2: Floats
    norm_ratio: Floats
    kept_share: Floats
    floor_cosine: Floats
    floor_relative_l2: Floats
    null_uniform: Floats
    null_recent: Floats = field(default_factory=_not_run)
    null_value_norm: Floats = field(default_factory=_not_run)
    null_random: Floats = field(default_factory=_not_run)
    null_oracle: Floats = field(default_factory=_not_run)
    math_flash_cosine: Floats = field(default_factory=_not_run)
    math_flash_relative_l2: Floats = field(default_factory=_not_run)
    kept_mass: Floats = field(default_factory=_not_run)
    most_mass: Floats = field(default_factory=_not_run)
    compact: Floats = field(default_factory=_not_run)
    kl_nats: Floats = field(default_factory=_not_run)
    agree: Floats = field(default_factory=_not_run)
    nll_nats: Floats = field(default_factory=_not_run)
    nll_sdpa_nats: Floats = field(default_factory=_not_run)
    needle_depth: Floats = field(default_factory=_not_run)
    needle_nats: Floats = field(default_factory=_not_run)
    needle_nats_sdpa: Floats = field(default_factory=_not_run)
    needle_rank: Floats = field(default_factory=_not_run)
    needle_rank_sdpa: Floats = field(default_factory=_not_run)
    kept_map: Floats = field(default_factory=_not_run)
    map_outside: Floats = field(default_factory=_not_run)
    map_bin: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    bound_violations: Floats = field(default_factory=_not_run)
    null_random_blocks: Floats = field(default_factory=_not_run)
    map_text: NDArray[np.str_] = field(default_factory=lambda: np.zeros(0, np.str_))
    text_nats: Floats = field(default_factory=_not_run)
    vocabulary: Floats = field(default_factory=_not_run)

    def pack(self) -> GateSamples:
        """The same arrays give the same bytes."""
        buffer = io.BytesIO()
        named = {part.name: getattr(self, part.name) for part in fields(self)}
        np.savez_compressed(buffer, **named)
        return GateSamples(buffer.getvalue())
