"""`BatchDecodeWithPagedKVCacheWrapper` of flashinfer-python 0.7.2, for one query a sequence."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.methods.fakes.attention import attended, require


class BatchDecodeWithPagedKVCacheWrapper:
    def __init__(
        self,
        float_workspace_buffer,
        kv_layout="NHD",
        use_cuda_graph=False,
        use_tensor_cores=False,
        paged_kv_indptr_buffer=None,
        paged_kv_indices_buffer=None,
        paged_kv_last_page_len_buffer=None,
        backend="auto",
        jit_args=None,
    ):
        require(float_workspace_buffer.dtype == torch.uint8, "a workspace of bytes")
        require(kv_layout in ("NHD", "HND"), "a layout that there is")
        self.layout = kv_layout
        self.workspace = float_workspace_buffer
        self._int_workspace_buffer = torch.empty(64, dtype=torch.uint8)
        self.graph = use_cuda_graph
        self.indptr = paged_kv_indptr_buffer
        self.indices = paged_kv_indices_buffer
        self.last = paged_kv_last_page_len_buffer
        if use_cuda_graph:
            require(len(self.indptr) == len(self.last) + 1, "indptr of batch + 1")

    def plan(
        self,
        indptr,
        indices,
        last_page_len,
        num_qo_heads,
        num_kv_heads,
        head_dim,
        page_size,
        *,
        pos_encoding_mode="NONE",
        window_left=-1,
        window_right=0,
        logits_soft_cap=None,
        q_data_type="float16",
        kv_data_type=None,
        o_data_type=None,
        data_type=None,
        sm_scale=None,
        rope_scale=None,
        rope_theta=None,
        non_blocking=True,
        block_tables=None,
        seq_lens=None,
        fixed_split_size=None,
        disable_split_kv=False,
        q_len_per_req=1,
        is_causal=None,
    ):
        for given in (indptr, indices, last_page_len):
            require(given.dtype == torch.int32, "int32 page tables")
        require(len(indptr) == len(last_page_len) + 1, "indptr of batch + 1")
        require(int(indptr[-1]) == len(indices), "as many pages as indptr says")
        require(int(last_page_len.min()) >= 1, "a page that holds a row")
        require(int(last_page_len.max()) <= page_size, "no more rows than a page has")
        if self.graph:  # the buffers that a graph reads are written in place
            require(len(indices) <= len(self.indices), "room for the page indices")
            self.indptr.copy_(indptr)
            self.last.copy_(last_page_len)
            self.indices[: len(indices)].copy_(indices)
        else:
            self.indptr, self.indices, self.last = indptr, indices, last_page_len
        self.planned = (num_qo_heads, num_kv_heads, head_dim, page_size, q_data_type, kv_data_type)
        self.scale = sm_scale

    def run(
        self,
        q,
        paged_kv_cache,
        *args,
        q_scale=None,
        k_scale=None,
        v_scale=None,
        out=None,
        lse=None,
        return_lse=False,
        enable_pdl=None,
        window_left=None,
        sinks=None,
        q_len_per_req=None,
        skip_softmax_threshold_scale_factor=None,
        kv_cache_sf=None,
    ):
        heads, kv_heads, head_dim, page, q_dtype, kv_dtype = self.planned
        k, v = paged_kv_cache
        require(self.layout == "HND", "only this layout is imitated")
        require(q.shape == (len(self.last), heads, head_dim), "q [B,H,D] as planned")
        require(k.shape[1:] == (kv_heads, page, head_dim), "pages as planned")
        require(k.stride() == v.stride() and k.stride(-1) == 1, "keys and values laid out alike")
        require(q.dtype == q_dtype and k.dtype == kv_dtype, "dtypes as planned")
        rows = [self.gathered(sequence, k, v) for sequence in range(len(q))]
        return torch.stack(
            [attended(one, *each, self.scale) for one, each in zip(q, rows, strict=True)]
        )

    def gathered(self, sequence: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """One sequence's rows [N,Hkv,D], page by page."""
        first, last = self.indptr[sequence : sequence + 2].tolist()
        pages = self.indices[first:last].tolist()
        count = (len(pages) - 1) * k.shape[2] + int(self.last[sequence])
        joined = (torch.cat([rows[p] for p in pages], dim=1)[:, :count] for rows in (k, v))
        keys, values = (rows.transpose(0, 1) for rows in joined)
        return keys, values
