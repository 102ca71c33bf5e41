"""Many ids in little room."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasuki_mp import IdRanges


def ranges_of(ids: list[int]) -> list[range]:
    return [range(each, each + 1) for each in ids]


@given(st.lists(st.integers(1, 60), unique=True).map(sorted))
def test_ranges_behave_like_the_list_of_their_ids(ids: list[int]) -> None:
    ranges = IdRanges(ranges_of(ids))
    assert list(ranges) == ids
    assert len(ranges) == len(ids)
    assert [ranges[i] for i in range(-len(ids), len(ids))] == ids + ids
    assert ranges[1:-1] == ids[1:-1]
    assert all((each in ranges) == (each in ids) for each in range(62))
    assert bool(ranges) == bool(ids)
    assert all(a.stop < b.start for a, b in zip(ranges.ranges, ranges.ranges[1:], strict=False))
    for beyond in (len(ids), -len(ids) - 1):
        with pytest.raises(IndexError):
            _ = ranges[beyond]


@given(st.lists(st.integers(1, 60)))
def test_ids_that_are_there_several_times_can_be_had_once(ids: list[int]) -> None:
    assert list(IdRanges(ranges_of(ids)).distinct()) == sorted(set(ids))


def test_a_million_ids_are_one_range() -> None:
    ids = IdRanges(range(n * 10_000, (n + 1) * 10_000) for n in range(100))
    assert ids.ranges == (range(1_000_000),)
    assert ids == IdRanges([range(1_000_000)])
    assert hash(ids) == hash(IdRanges([range(1_000_000)]))
    assert repr(ids) == "<1000000 ids: 0…999999>"


def test_others_are_no_ids() -> None:
    ids = IdRanges([range(3), range(5, 6)])
    assert "1" not in ids
    assert ids != [0, 1, 2, 5]
    assert IdRanges([range(0), range(2)]) == IdRanges([range(2)])
