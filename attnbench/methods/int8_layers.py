"""The decode state of an INT8 cache, in Triton and in PyTorch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor
from torch.nn.functional import pad

from attnbench.kernels.splits import SplitWorkspace
from attnbench.methods.base import CacheLength, CacheView, KernelConfig, LayerShape, MethodLayer
from attnbench.methods.int8_kv import LARGEST_CODE, key_scales, nearest_codes, value_scales
from attnbench.methods.split_kv import workspace


class Int8Layer(MethodLayer):
    """Codes and scales of one layer, and nothing of the exact cache but its length.

    Key codes are [B,Hkv,capacity,D]; value codes stand in pages of `page` tokens, transposed:
    [B,Hkv,P,D,page]. Capacity is rounded up to whole pages. Rows that hold no token are zero.
    """

    length: CacheLength
    k_codes: Tensor
    v_codes: Tensor
    k_scale: Tensor  # float32 [B,Hkv,D]
    v_scale: Tensor  # float32 [B,Hkv,capacity]
    v_unit: Tensor  # float32 [B,Hkv], the largest scale of a prefilled value

    def __init__(self, shape: LayerShape, page: int) -> None:
        self.shape = shape
        self.page = page
        self.prefilled = 0

    def prefill(self, cache: CacheView, q: Tensor | None = None) -> None:
        """Quantise the cached tokens, one sequence after another to save memory."""
        del q
        self.length = cache.length
        self.prefilled = cache.length.tokens
        self.allocate()
        for sequence in range(self.shape.batch):
            self.quantise(
                sequence,
                cache.k[sequence, :, : self.prefilled],
                cache.v[sequence, :, : self.prefilled],
            )
        self.v_unit = self.v_scale.amax(dim=2)
        self.v_unit[self.v_unit == 0] = 1.0

    def allocate(self) -> None:
        """Zeroed codes and scales with room for whole pages."""
        heads = (self.shape.batch, self.shape.kv_heads)
        head_dim, pages = self.shape.head_dim, -(-self.shape.capacity // self.page)
        codes = torch.zeros((1,), dtype=torch.int8, device=self.shape.device)
        scales = torch.zeros((1,), dtype=torch.float32, device=self.shape.device)
        self.k_codes = codes.new_zeros((*heads, pages * self.page, head_dim))
        self.v_codes = codes.new_zeros((*heads, pages, head_dim, self.page))
        self.k_scale = scales.new_ones((*heads, head_dim))
        self.v_scale = scales.new_zeros((*heads, pages * self.page))

    def quantise(self, sequence: int, k: Tensor, v: Tensor) -> None:
        """Fill one sequence's codes and scales from its rows [Hkv,N,D]."""
        tokens = self.prefilled
        self.k_scale[sequence] = key_scales(k[None])[0]
        self.k_codes[sequence, :, :tokens] = nearest_codes(k, self.k_scale[sequence, :, None]).to(
            torch.int8
        )
        self.v_scale[sequence, :, :tokens] = value_scales(v[None])[0]
        codes = nearest_codes(v, self.v_scale[sequence, :, :tokens, None]).to(torch.int8)
        pages = -(-tokens // self.page)
        codes = pad(codes, (0, 0, 0, pages * self.page - tokens))
        codes = codes.reshape(-1, pages, self.page, self.shape.head_dim)
        self.v_codes[sequence, :, :pages] = codes.mT

    def reset(self) -> None:
        """Zero codes and scales from the first appended token on."""
        page, row = divmod(self.prefilled, self.page)
        self.k_codes[:, :, self.prefilled :].zero_()
        self.v_scale[:, :, self.prefilled :].zero_()
        self.v_codes[:, :, page : page + 1, :, row:].zero_()
        self.v_codes[:, :, page + 1 :].zero_()

    def tensors(self) -> Iterator[Tensor]:
        """Codes and scales."""
        yield from (self.k_codes, self.v_codes, self.k_scale, self.v_scale, self.v_unit)

    def bytes_read(self) -> int:
        """A byte an element, four a value's scale, and the key scales."""
        heads = self.shape.batch * self.shape.kv_heads
        token_bytes = 2 * self.shape.head_dim + self.v_scale.itemsize
        return heads * (self.length.tokens + 1) * token_bytes + self.k_scale.nbytes

    def witness(self) -> Mapping[str, float]:
        """All tokens are attended; appended key codes at the limit may have been cut off there."""
        appended = self.k_codes[:, :, self.prefilled :].to(torch.int16)
        return {
            "kept_share": 1.0,
            "attended_tokens": float(self.length.tokens + 1),
            "appended_key_codes_at_limit": float((appended.abs() == LARGEST_CODE).sum()),
        }


class Int8TritonLayer(Int8Layer):
    """Dequantises in registers: reads half the bytes of a 16-bit cache."""

    work: SplitWorkspace

    def __init__(self, shape: LayerShape, config: KernelConfig) -> None:
        super().__init__(shape, page=config.block_n)
        self.config = config

    def prefill(self, cache: CacheView, q: Tensor | None = None) -> None:
        """Quantise, and allocate workspaces."""
        super().prefill(cache, q)
        self.work = workspace(self.shape, self.config)

    def decode(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Quantise and append the new row, and attend, in one launch."""
        from attnbench.kernels.int8_decode import int8_decode

        return int8_decode(
            q,
            k,
            v,
            (self.k_codes, self.v_codes),
            (self.k_scale, self.v_scale, self.v_unit),
            self.length.tensor,
            self.work,
            scale=self.shape.scale,
            num_warps=self.config.num_warps,
            num_stages=self.config.num_stages,
        )

    def tensors(self) -> Iterator[Tensor]:
        """Codes, scales and workspaces."""
        yield from super().tensors()
        yield from self.work.tensors()


class Int8TorchLayer(Int8Layer):
    """Widens the codes to float32 at every step: as small, but no faster than it can be in PyTorch.

    One page spans the whole capacity.
    """

    def __init__(self, shape: LayerShape) -> None:
        super().__init__(shape, page=shape.capacity)

    def decode(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Append, then attend in float32 with the scales folded into query and weights."""
        self.append(k[:, :, 0], v[:, :, 0])
        tokens = self.length.tokens + 1
        queries = q.float().reshape(*self.k_scale.shape[:2], -1, self.shape.head_dim)
        queries = queries * self.k_scale[:, :, None]
        scores = queries @ self.k_codes[:, :, :tokens].float().mT * self.shape.scale
        weights = torch.softmax(scores, dim=-1) * self.v_scale[:, :, None, :tokens]
        out = weights @ self.v_codes[:, :, 0, :, :tokens].float().mT
        return out.reshape(q.shape).to(q.dtype)

    def append(self, k: Tensor, v: Tensor) -> None:
        """Quantise one row [B,Hkv,D] of keys and of values into place."""
        row = self.length.tokens
        worth = value_scales(v[:, :, None])
        self.k_codes[:, :, row] = nearest_codes(k, self.k_scale).to(torch.int8)
        self.v_codes[:, :, 0, :, row] = nearest_codes(v, worth).to(torch.int8)
        self.v_scale[:, :, row] = worth[:, :, 0]
