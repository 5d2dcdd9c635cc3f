"""`torch.nn.attention.varlen.varlen_attn` as PyTorch 2.11 and 2.13 declare it."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.methods.fakes.attention import attended, require


def varlen_attn_2_11(
    query,
    key,
    value,
    cu_seq_q,
    cu_seq_k,
    max_q,
    max_k,
    *,
    return_aux=None,
    scale=None,
    window_size=(-1, -1),
):
    return packed_attention(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, scale)


def varlen_attn_2_13(
    query,
    key,
    value,
    cu_seq_q,
    cu_seq_k,
    max_q,
    max_k,
    *,
    return_aux=None,
    scale=None,
    window_size=(-1, -1),
    enable_gqa=False,
    seqused_k=None,
    block_table=None,
    num_splits=None,
):
    if not enable_gqa and query.size(1) != key.size(1):
        raise ValueError("Try setting enable_gqa=True for GQA.")
    return packed_attention(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, scale)


def packed_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_starts: Tensor,
    k_starts: Tensor,
    max_q: int,
    max_k: int,
    scale: float | None,
) -> Tensor:
    """q [T,H,D], k and v [T,Hkv,D], sequences between one start and the next."""
    for starts, most, packed in ((q_starts, max_q, q), (k_starts, max_k, k)):
        require(starts.dtype == torch.int32 and starts.is_contiguous(), "int32 starts")
        require(int(starts.diff().max()) <= most, "no sequence longer than the longest")
        require(int(starts[-1]) == len(packed), "the starts end where the tokens do")
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    for sequence in range(len(q_starts) - 1):
        (token, end), (first, last) = (
            starts[sequence : sequence + 2].tolist() for starts in (q_starts, k_starts)
        )
        require(end == token + 1, "one query a sequence is imitated")
        out[token] = attended(q[token], k[first:last], v[first:last], scale)
    return out
