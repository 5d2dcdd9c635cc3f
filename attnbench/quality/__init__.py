"""Whether a method hurts the model: real text, SDPA as the reference."""
