"""The decode state of selection by coded keys, in Triton and in PyTorch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor
from torch.nn.functional import pad

from attnbench.methods.base import (
    CacheLength,
    CacheView,
    KernelConfig,
    LayerShape,
    MethodLayer,
)
from attnbench.methods.coded_keys import (
    codes_of,
    digits_of,
    logit_unit,
    packed,
    rotated,
    unpacked,
)
from attnbench.methods.coded_rows import ExactRows, RoundedRows, Rows
from attnbench.methods.coded_topk import UNIT, CodedTopK, key_levels


class CodedLayer(MethodLayer):
    """The rows, codes of their keys, and what the last step kept.

    `codes` is uint8 [B,Hkv,capacity,D·bits/8], capacity rounded up to whole tiles of `tile` tokens;
    rows that hold no token are zero. `counts` is int32 [B·Hkv,S]: tokens that each program kept in
    the last step, zero before the first.
    """

    length: CacheLength
    rows: Rows
    codes: Tensor
    base: Tensor  # float32 [B,Hkv,D], as `step`
    step: Tensor
    counts: Tensor

    def __init__(self, method: CodedTopK, shape: LayerShape, *, tile: int, programs: int) -> None:
        self.shape, self.method = shape, method
        self.tile, self.programs = tile, programs
        self.prefilled = 0

    def prefill(self, cache: CacheView, q: Tensor | None = None) -> None:
        """Find the levels and make the codes, one sequence after another to save memory."""
        del q
        self.length = cache.length
        self.prefilled = cache.length.tokens
        self.rows = (RoundedRows if self.method.rounds else ExactRows)(cache, self.shape)
        shape, bits = self.shape, self.method.bits
        rows = -(-shape.capacity // self.tile) * self.tile
        size = (shape.batch, shape.kv_heads, rows, shape.head_dim * bits // 8)
        self.codes = torch.zeros(size, dtype=torch.uint8, device=shape.device)
        self.base, self.step = key_levels(cache.k[:, :, : self.prefilled], bits)
        for sequence in range(shape.batch):
            self.code(sequence, slice(0, self.prefilled), cache.k[sequence, :, : self.prefilled])
        self.counts = torch.zeros(
            (shape.batch * shape.kv_heads, self.programs), dtype=torch.int32, device=shape.device
        )

    def code(self, sequence: int, tokens: slice, keys: Tensor) -> None:
        """Make codes of one sequence's keys [Hkv,N,D]."""
        base, step = self.base[sequence, :, None], self.step[sequence, :, None]
        codes = codes_of(rotated(keys), base, step, self.method.bits)
        self.codes[sequence, :, tokens] = packed(codes, self.method.bits)

    def attended_rows(self, q: Tensor) -> Tensor:
        """What the codes choose, once more, and the newest token."""
        shape, tokens = self.shape, self.length.tokens
        grouped = q.reshape(shape.batch, shape.kv_heads, shape.group, shape.head_dim)
        digits, worth = digits_of(grouped, self.step, shape.scale)
        codes = unpacked(self.codes[:, :, :tokens], self.method.bits)
        kept = pad(self.method.kept(digits @ codes.mT, worth), (0, 1), value=True)
        return kept.repeat_interleave(shape.group, dim=1)

    def reset(self) -> None:
        """Zero the rows and codes appended since prefill."""
        self.rows.reset(self.prefilled)
        self.codes[:, :, self.prefilled :].zero_()
        self.counts.zero_()

    def tensors(self) -> Iterator[Tensor]:
        """Rows, codes, levels and counts."""
        yield from self.rows.tensors()
        yield from (self.codes, self.base, self.step, self.counts)

    @property
    def attended(self) -> int:
        """Tokens that a step is meant to attend to."""
        return self.method.quota(self.length.tokens).expected + 1

    def bytes_read(self) -> int:
        """The codes of all cached tokens, how wide they are, and the rows that are meant to be
        kept; that a program reads the sample once more costs no device memory."""
        shape, rows = self.shape, self.rows
        coded = shape.batch * shape.kv_heads * self.length.tokens * self.codes.shape[-1]
        kept = self.attended * rows.token_bytes + rows.bytes_beside()
        return coded + self.step.nbytes + kept

    def witness(self) -> Mapping[str, float]:
        """What the last step kept, counted; before the first what it is meant to keep."""
        counted = self.counts.sum(dim=1).tolist()
        if not any(counted):
            counted = [self.attended]
        mean = sum(counted) / len(counted)
        return {
            "kept_share": mean / (self.length.tokens + 1),
            "attended_tokens": mean,
            "fewest_tokens": float(min(counted)),
            "most_tokens": float(max(counted)),
            "meant_tokens": float(self.attended),
            **self.rows.at_limit(self.prefilled),
        }


class CodedTritonLayer(CodedLayer):
    """The kernel: a step reads the codes and the kept rows."""

    def __init__(self, method: CodedTopK, shape: LayerShape, config: KernelConfig) -> None:
        super().__init__(method, shape, tile=config.block_n, programs=config.splits)
        self.config = config

    def prefill(self, cache: CacheView, q: Tensor | None = None) -> None:
        """Make the codes, and allocate workspaces."""
        from attnbench.kernels.coded_decode import Rule, Scratch, padded_heads, tokens_a_row
        from attnbench.methods.split_kv import workspace

        super().prefill(cache, q)
        shape, method = self.shape, self.method
        self.work = workspace(shape, self.config)
        self.scratch = Scratch.allocate(
            shape.batch * shape.kv_heads,
            self.config.splits,
            padded_heads(shape.group, tokens_a_row(shape.head_dim, method.bits)),
            shape.head_dim,
            self.codes.shape[2],
            shape.device,
        )
        self.rule = Rule(
            method.share_steps, method.bits, method.sample, UNIT, method.sinks, method.recent
        )

    def decode(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Select, append and attend, in one launch."""
        from attnbench.kernels.coded_decode import coded_decode

        return coded_decode(
            q,
            k,
            v,
            (self.rows.keys, self.rows.values),
            self.rows.worth,
            (self.codes, self.base, self.step),
            self.length.tensor,
            self.counts,
            self.scratch,
            self.work,
            rule=self.rule,
            scale=self.shape.scale,
            logit_unit=logit_unit(self.shape.scale, self.shape.head_dim),
            block_n=self.config.block_n,
            num_warps=self.config.num_warps,
            num_stages=self.config.num_stages,
        )

    def tensors(self) -> Iterator[Tensor]:
        """Rows, codes, and what programs write down for themselves and each other."""
        yield from super().tensors()
        yield from self.scratch.tensors()
        yield from self.work.tensors()


class CodedTorchLayer(CodedLayer):
    """Widens codes to float32 and masks what is not kept: shows what the method keeps, and saves
    nothing."""

    def __init__(self, method: CodedTopK, shape: LayerShape) -> None:
        super().__init__(method, shape, tile=1, programs=1)

    def decode(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Select among the cached tokens, append, attend in float32."""
        shape, tokens = self.shape, self.length.tokens
        grouped = q.reshape(shape.batch, shape.kv_heads, shape.group, shape.head_dim)
        digits, worth = digits_of(grouped, self.step, shape.scale)
        codes = unpacked(self.codes[:, :, :tokens], self.method.bits)
        kept = self.method.kept(digits @ codes.mT, worth)
        self.counts.copy_(kept.sum(dim=-1).flatten()[:, None] + 1)
        self.rows.append(k, v, tokens)
        keys, values = self.rows.widened(tokens + 1)
        self._code_newest(k, tokens)
        scores = grouped.float() @ keys.mT * shape.scale
        scores[..., :tokens].masked_fill_(~kept[:, :, None], -torch.inf)
        out = torch.softmax(scores, dim=-1) @ values
        return out.reshape(q.shape).to(q.dtype)

    def _code_newest(self, k: Tensor, tokens: int) -> None:
        codes = codes_of(rotated(k), self.base[:, :, None], self.step[:, :, None], self.method.bits)
        self.codes[:, :, tokens : tokens + 1] = packed(codes, self.method.bits)


# (tokens of a tile of the scan, warps, stages of the walk over kept rows, programs on an SM), the
# default first. The walk looks up where a row is before it asks for it: of its stages about half
# are rows in flight.
CANDIDATES = (
    (512, 4, 5, 4),
    (512, 4, 4, 4),
    (256, 4, 5, 4),
    (1024, 4, 5, 4),
    (512, 4, 7, 4),
    (512, 4, 5, 3),
    (512, 4, 5, 2),
    (512, 8, 5, 2),
    (256, 8, 5, 2),
    (512, 8, 7, 1),
)
TILES_IN_FLIGHT = 2  # of the scan, whatever the walk's stages


def coded_configurations(method: CodedTopK, shape: LayerShape) -> tuple[KernelConfig, ...]:
    """Launch parameters worth trying: whole waves of programs that all run at once, and tiles that
    fit in shared memory."""
    from attnbench.methods.split_kv import (
        MOST_SPLITS,
        SCRATCH_BYTES,
        SHARED_BYTES,
        sm_count,
        whole_waves,
    )

    found = []
    for block_n, warps, stages, on_an_sm in CANDIDATES:
        tile_bytes = block_n * shape.head_dim * method.bits // 8
        if TILES_IN_FLIGHT * tile_bytes + SCRATCH_BYTES > SHARED_BYTES:
            continue
        splits = whole_waves(
            pairs=shape.batch * shape.kv_heads,
            at_once=sm_count(shape.device) * on_an_sm,
            most=min(MOST_SPLITS, -(-shape.capacity // block_n)),
        )
        found.append(KernelConfig(block_n, splits, warps, stages))
    return tuple(dict.fromkeys(found))
