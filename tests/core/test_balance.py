"""Sharing shards: any start comes to an even share in the fewest moves, and stays there."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from duly.core.balance import HandOver, next_hand_over

PROCESSES = ("a", "b", "c", "d", "e")
STARTS = st.lists(st.sampled_from(PROCESSES), max_size=20)  # who leads each shard
LIVE = st.sets(st.sampled_from(PROCESSES), min_size=1)


def standings(owners: list[str], live: set[str]) -> dict[str, set[str]]:
    """What each live process leads."""
    leads: dict[str, set[str]] = {name: set() for name in live}
    for number, owner in enumerate(owners):
        leads[owner if owner in live else min(live)].add(f"s{number:02}")
    return leads


@given(owners=STARTS, live=LIVE)
def test_any_start_comes_to_an_even_share_and_stays(owners: list[str], live: set[str]) -> None:
    """Nobody has more than ⌈shards / processes⌉; no more moves than the surplus; then none."""
    leads = standings(owners, live)
    share = -(-len(owners) // len(live))
    low = len(owners) // len(live)
    wanted = max(
        sum(max(0, len(shards) - share) for shards in leads.values()),
        sum(max(0, low - len(shards)) for shards in leads.values()),
    )
    moves = 0
    while (move := next_hand_over(leads, live)) is not None:
        leads[move.giver].remove(move.shard)
        leads[move.taker].add(move.shard)
        moves += 1
        assert moves <= wanted
    assert moves == wanted
    assert max(map(len, leads.values())) <= share
    assert sum(map(len, leads.values())) == len(owners)


@given(owners=STARTS, live=LIVE)
def test_all_who_see_the_same_agree_on_the_one_move(owners: list[str], live: set[str]) -> None:
    """In whatever order they heard of each other."""
    leads = standings(owners, live)
    backwards = dict(reversed(leads.items()))
    assert next_hand_over(leads, sorted(live)) == next_hand_over(backwards, sorted(live, reverse=True))


def test_only_those_who_may_be_given_more_are() -> None:
    """A process that has only just come waits; one that is behind by one is even."""
    leads = {"a": {"s0", "s1", "s2"}, "b": {"s3"}, "new": set[str]()}
    assert next_hand_over(leads, ["b"]) == HandOver("s2", "a", "b")
    assert next_hand_over(leads, ["b", "new"]) == HandOver("s2", "a", "new")
    assert next_hand_over(leads, []) is None
    assert next_hand_over({}, ["b"]) is None
    assert next_hand_over({"a": {"s0", "s1"}, "b": {"s2"}}, ["a", "b"]) is None
