"""The schedule is balanced, reproducible, and pure data."""

from collections import Counter
from itertools import pairwise

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from attnbench.errors import UsageError
from attnbench.protocol.presets import CANONICAL, PRESETS, RIGOROUS, Protocol, preset
from attnbench.protocol.schedule import Schedule, schedule, williams_square

plans = st.builds(
    lambda arms, sessions, blocks, groups, seed: schedule(
        [f"arm{i}" for i in range(arms)],
        sessions=sessions,
        blocks=max(blocks, groups),
        groups=groups,
        seed=seed,
    ),
    arms=st.integers(2, 13),
    sessions=st.integers(1, 4),
    blocks=st.integers(1, 45),
    groups=st.integers(1, 12),
    seed=st.integers(0, 2**32),
)


@given(plans)
def test_every_block_holds_each_arm_once(plan):
    for session in plan.sessions:
        assert all(sorted(block.arms) == sorted(plan.arms) for block in session.blocks)


@given(plans)
def test_each_arm_stands_in_each_position_equally_often_up_to_one(plan):
    for session in plan.sessions:
        counts = Counter(
            (arm, place) for block in session.blocks for place, arm in enumerate(block.arms)
        )
        cells = [counts[arm, place] for arm in plan.arms for place in range(len(plan.arms))]
        assert max(cells) - min(cells) <= 1


@given(plans)
def test_each_arm_follows_each_other_equally_often_up_to_one_or_two(plan):
    for session in plan.sessions:
        counts = Counter(pair for block in session.blocks for pair in pairwise(block.arms))
        pairs = [counts[a, b] for a in plan.arms for b in plan.arms if a != b]
        assert max(pairs) - min(pairs) <= (1 if len(plan.arms) % 2 == 0 else 2)


@given(plans)
def test_first_blocks_differ_between_sessions_while_permutations_last(plan):
    firsts = {session.blocks[0].arms for session in plan.sessions}
    assert len(firsts) == min(len(plan.sessions), 2 if len(plan.arms) == 2 else 6)


@given(plans)
def test_groups_share_the_blocks_up_to_one(plan):
    for session in plan.sessions:
        sizes = [len(group.blocks) for group in session.groups]
        assert max(sizes) - min(sizes) <= 1


@given(plans)
def test_a_schedule_survives_json(plan):
    assert msgspec.json.decode(msgspec.json.encode(plan), type=Schedule) == plan


def test_arms_are_captured_in_another_order_for_each_group():
    plan = schedule(list("abcdefgh"), sessions=3, blocks=12, groups=4, seed=1)
    orders = [group.capture_order for session in plan.sessions for group in session.groups]
    assert all(sorted(order) == list("abcdefgh") for order in orders)
    assert len(set(orders)) == len(orders)


def test_the_same_seed_gives_the_same_schedule_and_another_seed_another():
    make = {"arms": list("abcde"), "sessions": 3, "blocks": 12, "groups": 4}
    assert schedule(**make, seed=7) == schedule(**make, seed=7)
    assert schedule(**make, seed=7) != schedule(**make, seed=8)


def test_a_schedule_stays_what_it_was_when_it_was_recorded():
    plan = schedule(list("abc"), sessions=1, blocks=3, groups=1, seed=0)
    orders = ["".join(block.arms) for block in plan.sessions[0].blocks]
    assert (orders, "".join(plan.sessions[0].groups[0].capture_order)) == RECORDED


RECORDED = (["abc", "cab", "bca"], "cba")


@pytest.mark.parametrize("size", range(2, 14))
def test_williams_squares_balance_neighbours_exactly(size):
    rows = williams_square(size)
    if size % 2:
        rows += williams_square(size, mirrored=True)
    pairs = Counter(pair for row in rows for pair in pairwise(row))
    assert set(pairs.values()) == {len(rows) // size}
    assert len(pairs) == size * (size - 1)


@pytest.mark.parametrize(
    ("arms", "counts"),
    [
        (["a"], {"sessions": 3, "blocks": 12, "groups": 4}),
        (["a", "a"], {"sessions": 3, "blocks": 12, "groups": 4}),
        (["a", "b"], {"sessions": 0, "blocks": 12, "groups": 4}),
        (["a", "b"], {"sessions": 3, "blocks": 3, "groups": 4}),
        (["a", "b"], {"sessions": 3, "blocks": 3, "groups": 0}),
    ],
)
def test_impossible_schedules_are_refused(arms, counts):
    with pytest.raises(UsageError):
        schedule(arms, **counts, seed=0)


def test_presets_are_those_of_the_method_page():
    assert (CANONICAL.warmup_steps, CANONICAL.untimed_steps, CANONICAL.timed_steps) == (50, 5, 30)
    assert (CANONICAL.min_visit_ms, CANONICAL.blocks, CANONICAL.sessions) == (20.0, 12, 3)
    assert (RIGOROUS.sessions, RIGOROUS.blocks, RIGOROUS.groups) == (8, 40, 10)
    assert all(preset(name) is protocol for name, protocol in PRESETS.items())


def test_a_misspelt_preset_names_the_nearest():
    with pytest.raises(UsageError) as caught:
        preset("rigourous")
    assert "rigorous" in caught.value.hint


@pytest.mark.parametrize(
    "change",
    [
        {"blocks": 0},
        {"groups": 13},
        {"level": 1.0},
        {"untimed_steps": -1},
        {"equivalence_margin": 0.0},
    ],
)
def test_a_protocol_that_cannot_be_is_refused(change):
    with pytest.raises(UsageError):
        Protocol(**(msgspec.structs.asdict(CANONICAL) | change))
