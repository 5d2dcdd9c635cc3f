"""`flash_attn_with_kvcache` as fa3-fwd 0.0.3 and flash-attn 2.8 declare it."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.methods.fakes.attention import attended, require


def fa3(
    q,
    k_cache,
    v_cache,
    k=None,
    v=None,
    qv=None,
    rotary_cos=None,
    rotary_sin=None,
    cache_seqlens=None,
    cache_batch_idx=None,
    cache_leftpad=None,
    page_table=None,
    cu_seqlens_q=None,
    cu_seqlens_k_new=None,
    max_seqlen_q=None,
    rotary_seqlens=None,
    q_descale=None,
    k_descale=None,
    v_descale=None,
    softmax_scale=None,
    causal=False,
    window_size=(-1, -1),
    attention_chunk=0,
    softcap=0.0,
    rotary_interleaved=True,
    scheduler_metadata=None,
    num_splits=0,
    pack_gqa=None,
    sm_margin=0,
    return_softmax_lse=False,
):
    return cached(q, k_cache, v_cache, k, v, cache_seqlens, softmax_scale)


def fa2(
    q,
    k_cache,
    v_cache,
    k=None,
    v=None,
    rotary_cos=None,
    rotary_sin=None,
    cache_seqlens=None,
    cache_batch_idx=None,
    cache_leftpad=None,
    block_table=None,
    softmax_scale=None,
    causal=False,
    window_size=(-1, -1),
    softcap=0.0,
    rotary_interleaved=True,
    alibi_slopes=None,
    num_splits=0,
    return_softmax_lse=False,
):
    return cached(q, k_cache, v_cache, k, v, cache_seqlens, softmax_scale)


def cached(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    k: Tensor | None,
    v: Tensor | None,
    lengths: Tensor | None,
    scale: float | None,
) -> Tensor:
    """q [B,1,H,D] over caches [B,N,Hkv,D] up to `lengths`; new rows go there first."""
    batch, queries, heads, head_dim = q.shape
    held, rows, kv_heads, _ = k_cache.shape
    require(queries == 1 and held == batch, "one query of each sequence of the cache")
    require(heads % kv_heads == 0 and k_cache.shape[-1] == head_dim, "heads and dimensions agree")
    for tensor in (q, k_cache, v_cache, k, v):
        require(tensor is None or tensor.stride(-1) == 1, "contiguous last dimension")
        require(tensor is None or tensor.dtype == q.dtype, "one dtype")
    if k is not None:
        require(lengths is not None, "where new rows go is asked of cache_seqlens")
        require(k.shape == v.shape == (batch, 1, kv_heads, head_dim), "new rows [B,1,Hkv,D]")
    if lengths is None:
        ends = [rows] * batch
    else:
        require(lengths.dtype == torch.int32 and lengths.shape == (batch,), "int32 [B]")
        require(lengths.is_contiguous(), "contiguous lengths")
        ends = lengths.tolist()
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    for b, end in enumerate(ends):
        if k is not None:
            require(end < rows, "room for the new row")
            k_cache[b, end], v_cache[b, end] = k[b, 0], v[b, 0]
            end += 1
        out[b, 0] = attended(q[b, 0], k_cache[b, :end], v_cache[b, :end], scale)
    return out
