"""Without a CUDA GPU Triton's kernels are interpreted; that is decided before one is imported."""

import os

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
