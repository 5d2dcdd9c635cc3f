"""Attention and KV-cache methods, one a file."""
