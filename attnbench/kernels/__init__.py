"""The Triton kernels that methods call, one a file."""
