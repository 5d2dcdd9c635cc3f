"""A ledger as one page: what was claimed, what was measured, and what became of both."""
