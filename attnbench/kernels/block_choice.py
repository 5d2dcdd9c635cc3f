"""Which blocks each query head keeps, by scores that one program holds: no sort, and no host.

A score becomes a whole number that orders as it does. The number that enough scores reach is found
two bits at a time, from the first bit in which any two differ, with the counts of three candidates
in one sum; it stops as soon as just enough do. Of equal scores the earlier block's is higher. What
is no number is higher than all numbers: nothing shows that such a block may be left out.
"""

from __future__ import annotations

import triton
import triton.language as tl

SIGN = tl.constexpr(-(2**31))
FEW = tl.constexpr(512)  # blocks, of which three counts fit in 32 bits, ten each; else in 64


@triton.jit
def _order(score):
    """Numbers, uint32, that order as scores do; zero equals minus zero."""
    bits = tl.where(score == 0.0, 0, score.to(tl.int32, bitcast=True))
    bits = tl.where(bits < 0, ~bits, bits ^ SIGN)
    bits = tl.where(score != score, -1, bits)
    return bits.to(tl.uint32, bitcast=True)


@triton.jit
def _common(order, among):
    """What the numbers [G,W] among [W] have in common: what is above the first digit of two bits in
    which any two of a row differ, uint32 [G], and how many digits are left."""
    high = tl.max(tl.where(among[None, :], order, 0), 1)
    low = ~tl.max(tl.where(among[None, :], ~order, 0), 1)
    apart = tl.max(high ^ low, 0)
    digits = tl.full([], 16, tl.uint32)
    while (digits > 1) & ((apart >> (2 * digits - 2)) == 0):
        digits -= 1
    ones = tl.full([], 0xFFFFFFFF, tl.uint32)
    return high & ~(ones >> (32 - 2 * digits)), digits


@triton.jit
def _highest(score, among, want):
    """The `want` [G] highest of scores [G,W] among [W]; no more are wanted than there are."""
    order = tl.where(among[None, :], _order(score), 0)
    limit, digits = _common(order, among)
    reached = tl.where(want > 0, tl.sum(among.to(tl.int32), 0), 0)
    unlike = tl.max((reached != want).to(tl.int32), 0)
    BITS: tl.constexpr = 10 if score.shape[1] <= FEW else 20
    KIND: tl.constexpr = tl.int32 if score.shape[1] <= FEW else tl.int64
    while (digits > 0) & (unlike > 0):
        digits -= 1
        one = tl.full([], 1, tl.uint32) << (2 * digits)
        found = (order >= (limit + one)[:, None]).to(KIND)
        found += (order >= (limit + 2 * one)[:, None]).to(KIND) << BITS
        found += (order >= (limit + 3 * one)[:, None]).to(KIND) << (2 * BITS)
        sums = tl.sum(found, 1)
        reach_1 = (sums & ((1 << BITS) - 1)).to(tl.int32)
        reach_2 = ((sums >> BITS) & ((1 << BITS) - 1)).to(tl.int32)
        reach_3 = (sums >> (2 * BITS)).to(tl.int32)
        limit += tl.where(reach_1 >= want, one, 0)
        limit += tl.where(reach_2 >= want, one, 0)
        limit += tl.where(reach_3 >= want, one, 0)
        reached = tl.where(reach_1 >= want, reach_1, reached)
        reached = tl.where(reach_2 >= want, reach_2, reached)
        reached = tl.where(reach_3 >= want, reach_3, reached)
        unlike = tl.max((reached != want).to(tl.int32), 0)
    keep = among[None, :] & (order >= limit[:, None]) & (want > 0)[:, None]
    if unlike > 0:  # equal scores, of which the first are taken
        higher = among[None, :] & (order > limit[:, None])
        room = want - tl.sum(higher.to(tl.int32), 1)
        equal = among[None, :] & (order == limit[:, None])
        before = tl.cumsum(equal.to(tl.int32), 1) - equal.to(tl.int32)
        keep = (higher | (equal & (before < room[:, None]))) & (want > 0)[:, None]
    return keep


@triton.jit
def _heaviest(score, weight, among, want):
    """The first of scores [G,W] among [W], from the highest on, before which weights [G,W] add up
    to less than `want` [G]. A bit at a time, as sums of weights do not tell when to stop."""
    order = tl.where(among[None, :], _order(score), 0)
    weight = tl.where(among[None, :], weight, 0.0)
    limit, digits = _common(order, among)
    bits = 2 * digits
    while bits > 0:
        bits -= 1
        candidate = limit + (tl.full([], 1, tl.uint32) << bits)
        reach = tl.sum(tl.where(order >= candidate[:, None], weight, 0.0), 1)
        limit = tl.where(reach >= want, candidate, limit)
    higher = order > limit[:, None]
    above = tl.sum(tl.where(higher, weight, 0.0), 1)
    equal = order == limit[:, None]
    own = tl.where(equal, weight, 0.0)
    before = above[:, None] + tl.cumsum(own, 1) - own
    keep = higher | (equal & (before < want[:, None]))
    return keep & among[None, :] & (want > 0)[:, None]


@triton.jit
def _budget(
    count, tokens, NUMERATOR: tl.constexpr, DENOMINATOR: tl.constexpr, OF_TOKENS: tl.constexpr
):
    """So much of the tokens, rounded up, or of the blocks, rounded to the nearest and from the
    middle to the even number; one at least and all at most."""
    if OF_TOKENS:
        found = (tokens.to(tl.int64) * NUMERATOR + (DENOMINATOR - 1)) // DENOMINATOR
    else:
        product = count.to(tl.int64) * NUMERATOR
        found = product // DENOMINATOR
        twice = 2 * (product - found * DENOMINATOR)
        found += ((twice > DENOMINATOR) | ((twice == DENOMINATOR) & (found % 2 == 1))).to(tl.int64)
    return tl.minimum(tl.maximum(found, 1), count).to(tl.int32)


@triton.jit
def _keep_blocks(
    score,
    there,
    pinned,
    held,
    count,
    tokens,
    value,
    to_log2,
    RULE: tl.constexpr,
    NUMERATOR: tl.constexpr,
    DENOMINATOR: tl.constexpr,
    OF_TOKENS: tl.constexpr,
):
    """Blocks [G,W] that heads keep beside those that they always do, by scores [G,W]; `there`,
    `pinned` and tokens `held` are [W], and a score times `to_log2` is a logit in base 2."""
    if RULE == "absolute":
        keep = ~(score < value)
    elif RULE == "relative":
        high = tl.max(tl.where(there[None, :], score, float("-inf")), 1)
        strange = tl.max((there[None, :] & (score != score)).to(tl.int32), 1)
        high = tl.where(strange > 0, float("nan"), high)
        keep = ~(score < (value * high)[:, None])
    elif RULE == "share":
        others = there & ~pinned
        want = _budget(count, tokens, NUMERATOR, DENOMINATOR, OF_TOKENS)
        want = tl.maximum(want - tl.sum(pinned.to(tl.int32), 0), 0)
        keep = _highest(score, others, tl.zeros([score.shape[0]], tl.int32) + want)
    else:
        tl.static_assert(RULE == "mass")
        logits = score * to_log2 + tl.log2(held.to(tl.float32))[None, :]
        logits = tl.where(there[None, :], logits, float("-inf"))
        weight = tl.exp2(logits - tl.max(logits, 1)[:, None])
        total = tl.sum(weight, 1)
        want = value * total - tl.sum(tl.where(pinned[None, :], weight, 0.0), 1)
        keep = _heaviest(score, weight, there & ~pinned, want)
        keep = keep | (total != total)[:, None]
    return keep
