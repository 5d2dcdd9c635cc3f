"""Claims that need nothing but arithmetic, each computed again from its definition.

One file a system, one function a claim. A function's keyword arguments are its inputs, with the
source's own as defaults; it returns what it saw and judges nothing.
"""
