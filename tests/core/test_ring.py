"""The ring: slots never change, load is even, and a shard that joins or leaves moves about its share."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from duly.core.model import JobId
from duly.core.ring import SLOTS, Ring, SlotMap, map_slots, moves, place, slot

NAMES = st.text("abcdefghijklmnopqrstuvwxyz0123456789-", min_size=1, max_size=8)


def even(names: list[str]) -> Ring:
    """A ring of shards that are alike."""
    return place(dict.fromkeys(names, 1.0))


def loads(ring: Ring) -> dict[str, int]:
    """Slots of each shard."""
    return {name: len(ring.slots_of(name)) for name in set(ring.table)}


@pytest.mark.parametrize(
    ("job_id", "expected"),
    [("", 510), ("a", 3611), ("0198f0a0-0000-7000-8000-000000000000", 3930)],
)
def test_a_jobs_slot_never_changes(job_id: str, expected: int) -> None:
    """It is where the job's rows are: a changed hash would lose them all."""
    assert slot(JobId(job_id)) == expected


def test_slots_of_ids_are_spread() -> None:
    """Consecutive ids do not gather."""
    hit = {slot(JobId(f"0198f0a0-0000-7000-8000-{i:012x}")) for i in range(20_000)}
    assert len(hit) > 0.98 * SLOTS


@settings(max_examples=15, deadline=None)
@given(st.lists(NAMES, min_size=1, max_size=16, unique=True))
def test_every_slot_has_one_shard_and_the_order_of_shards_does_not_matter(names: list[str]) -> None:
    """Every node computes the same ring."""
    ring = even(names)
    assert len(ring.table) == SLOTS
    assert set(ring.table) == set(names)
    assert even(names[::-1]) == ring
    assert sorted(i for name in names for i in ring.slots_of(name)) == list(range(SLOTS))
    assert ring.shard_of(JobId("x")) == ring.table[slot(JobId("x"))]


@settings(max_examples=10, deadline=None)
@given(st.lists(NAMES, min_size=16, max_size=16, unique=True))
def test_sixteen_shards_are_balanced(names: list[str]) -> None:
    """The fullest holds at most a tenth more than the mean."""
    assert max(loads(even(names)).values()) / (SLOTS / 16) <= 1.1


@settings(max_examples=20, deadline=None)
@given(st.lists(NAMES, min_size=2, max_size=16, unique=True))
def test_a_shard_that_joins_or_leaves_moves_about_its_share(names: list[str]) -> None:
    """At most a fifth more than 1/n, and every slot that it had or gets."""
    with_it, without = even(names), even(names[:-1])
    joined, left = moves(without, with_it), moves(with_it, without)
    assert len(joined) == len(left) <= 1.2 * SLOTS / len(names)
    assert {move.slot for move in joined if move.target == names[-1]} == set(with_it.slots_of(names[-1]))
    assert {move.slot for move in left if move.source == names[-1]} == set(with_it.slots_of(names[-1]))


@settings(max_examples=8, deadline=None)
@given(st.dictionaries(NAMES, st.floats(0.5, 2.0), min_size=16, max_size=16))
def test_sixteen_shards_of_any_weight_are_balanced_and_move_little(weights: dict[str, float]) -> None:
    """Each is filled to at most a tenth above its share; joining or leaving moves at most a fifth more than that.

    Of a light shard: than an even share. Beside heavier ones, single slots weigh in its sum.
    """
    ring = place(weights)
    shares = {name: SLOTS * weight / sum(weights.values()) for name, weight in weights.items()}
    held = loads(ring)
    assert all(held[name] <= 1.1 * share for name, share in shares.items())
    one = min(weights)
    without = place({name: weight for name, weight in weights.items() if name != one})
    assert len(moves(ring, without)) == len(moves(without, ring)) <= 1.2 * max(shares[one], SLOTS / 16)


def test_moves_say_from_where_to_where() -> None:
    """By slot; none between equal rings."""
    before = Ring(("a", "b", "a"))
    assert moves(before, before) == ()
    assert moves(before, Ring(("a", "c", "b"))) == ((1, "b", "c"), (2, "a", "b"))


def test_weights_share_the_slots() -> None:
    """A shard of weight 3 holds three times as much, within the slack."""
    held = loads(place({"small": 1.0, "large": 3.0, "other": 1.0}))
    assert held["large"] == pytest.approx(SLOTS * 3 / 5, rel=0.09)
    assert held["small"] == pytest.approx(SLOTS / 5, rel=0.09)


@pytest.mark.parametrize("weights", [{}, {"a": 0.0}, {"a": 1.0, "b": -1.0}, {"a": float("nan")}, {"a": float("inf")}])
def test_a_ring_needs_shards_with_weight(weights: dict[str, float]) -> None:
    """Everything else is refused."""
    with pytest.raises(ValueError, match="shard"):
        place(weights)


def test_slot_maps_follow_each_other_by_epoch() -> None:
    """The table is the ring's; its weights go with it, through its encoding too."""
    first = map_slots({"a": 1.0, "b": 2.0})
    second = map_slots({"a": 1.0, "b": 2.0, "c": 1.0}, after=first)
    assert (first.epoch, second.epoch) == (1, 2)
    assert second.table == place({"a": 1.0, "b": 2.0, "c": 1.0}).table
    assert {move.target for move in moves(first, second)} == {"c"}
    assert msgspec.json.decode(msgspec.json.encode(second), type=SlotMap) == second


@pytest.mark.parametrize(("table", "epoch"), [(("a",) * SLOTS, 0), (("a",), 1), (("a",) * (SLOTS - 1) + ("",), 1)])
def test_a_slot_map_names_a_shard_for_each_slot(table: tuple[str, ...], epoch: int) -> None:
    """With an epoch from 1 on; whoever sends another is refused."""
    with pytest.raises(ValueError, match="slot map"):
        SlotMap(table, epoch=epoch)
    with pytest.raises(msgspec.ValidationError, match="slot map"):
        msgspec.json.decode(msgspec.json.encode({"table": table, "epoch": epoch}), type=SlotMap)
