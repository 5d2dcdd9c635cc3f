"""DCR: what its printed times and its bytes say."""

from __future__ import annotations

from attnbench.protocol.recomputed.observed import Observed, value


def captured_share(
    sdpa_ms: float = 198.64,
    m4_ms: float = 228.43,
    production_ms: float = 187.29,
    ceiling_ms: float = 159.76,
) -> Observed:
    """DCR-05: how far production goes from M4's speed to the ceiling's, both relative to SDPA."""
    m4, production, ceiling = (sdpa_ms / ms for ms in (m4_ms, production_ms, ceiling_ms))
    in_ms = (m4_ms - production_ms) / (m4_ms - ceiling_ms)
    from_parity = (production - 1) / (ceiling - 1)
    return value(
        (production - m4) / (ceiling - m4),
        "share",
        "speeds relative to SDPA from the printed milliseconds; (production - M4) / (ceiling - M4)",
        {"sdpa": sdpa_ms, "m4": m4_ms, "production": production_ms, "ceiling": ceiling_ms},
        note=f"in milliseconds {in_ms:.3f}; counted from SDPA instead of M4 {from_parity:.3f}",
    )


def traffic_ratio(coverage: float = 0.15, query_heads_per_kv_head: int = 4) -> Observed:
    """DCR-09: least bytes of a DCR step over those of dense decode, with rows read by each head."""
    group = query_heads_per_kv_head
    scoring, gathered, dense = 1.0, 2 * coverage * group, 2.0
    return value(
        (scoring + gathered) / dense,
        "bytes over dense bytes",
        "K once for the scores, the kept rows of K and V once a query head; dense: K and V once",
        {"coverage": coverage, "query_heads_per_kv_head": group},
        note=f"break-even at a coverage of {1 / (2 * group):g}; with one selection for all heads "
        f"of a group {scoring / dense + coverage:g}",
    )


RECOMPUTED = {"DCR-05": captured_share, "DCR-09": traffic_ratio}
