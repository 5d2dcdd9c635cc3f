"""Where a model comes from, and one decode step of it."""
