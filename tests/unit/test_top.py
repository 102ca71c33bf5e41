"""What `tasuki-mp top` draws, in a small window and in a large one."""

from __future__ import annotations

import msgspec
import pytest

from tasuki_mp.cli.top import Line, Page, drawn, tables
from tasuki_mp.store.commands import SlotView
from tasuki_mp.store.look import QueueDepth


def _page(busy: int, idle: int, queues: int = 2) -> Page:
    lines = [Line(host="alpha", slot=SlotView(slot=n, pid=100 + n), cpu_share=0.0) for n in range(idle)]
    lines += [
        Line(
            host="beta",
            slot=SlotView(
                slot=n,
                pid=200 + n,
                job_id=1000 + n,
                handler="shop.images.thumbnail",
                queue="images",
                attempt=1,
                ran_for=61.0 + n,
                private=50 << 20,
                shared=200 << 20,
            ),
            cpu_share=0.97,
            progress=0.4,
            note="chunk 12 of 30",
        )
        for n in range(busy)
    ]
    depths = [QueueDepth(queue=f"q{n}", due=n, scheduled=0, held=0, running=0, oldest_due=1.0) for n in range(queues)]
    return Page(lines=lines, queues=depths, rate=12.34, hosts=2)


@pytest.mark.parametrize(("width", "height"), [(80, 24), (200, 50), (80, 14)])
def test_it_fits_the_window(width: int, height: int) -> None:
    text = drawn(_page(busy=40, idle=40, queues=30), width, height - 3, 1003)
    lines = text.plain.splitlines()
    assert len(lines) <= height - 3
    assert max(map(len, lines)) <= width


def test_a_narrow_window_goes_without_memory_before_progress_and_note_are_cut() -> None:
    page = _page(busy=1, idle=0)
    slot = msgspec.structs.replace(page.lines[0].slot, handler="render")
    page = msgspec.structs.replace(page, lines=[msgspec.structs.replace(page.lines[0], slot=slot)])
    for width, memory in ((83, ["OWN"]), (80, []), (200, ["OWN", "SHARED"])):
        plain = drawn(page, width, 20, None).plain
        assert [heading for heading in ("OWN", "SHARED") if heading in plain] == memory
        assert " 40% ████░░░░░░" in plain
        assert "chunk 12 of 30" in plain


def test_busy_slots_come_before_idle_ones_when_there_is_no_room() -> None:
    plain = drawn(_page(busy=5, idle=40), 120, 20, None).plain
    assert plain.count("thumbnail") == 5
    assert "more slots" in plain


def test_the_chosen_job_is_marked() -> None:
    text = drawn(_page(busy=3, idle=0), 120, 30, 1001)
    marked = [text.plain[span.start : span.end] for span in text.spans if span.style == "reverse"]
    assert len(marked) == 1
    assert "1001" in marked[0]


def test_no_other_line_is_marked_that_has_the_same_number() -> None:
    page = _page(busy=1, idle=1)
    slot = msgspec.structs.replace(page.lines[1].slot, job_id=2)
    page = msgspec.structs.replace(page, lines=[page.lines[0], msgspec.structs.replace(page.lines[1], slot=slot)])
    text = drawn(page, 120, 30, 2)
    (marked,) = [text.plain[span.start : span.end] for span in text.spans if span.style == "reverse"]
    assert marked.startswith("beta"), "2 slots, 2 hosts and job 2"


def test_everything_is_there_without_a_window() -> None:
    queues, slots = tables(_page(busy=1, idle=1), room=None)
    assert [row[0] for row in queues.rows] == ["q1", "q0"]
    assert slots.title == "1 of 2 slots busy on 2 hosts · 12.3 attempts end in a second"
    busy = next(row for row in slots.plain().splitlines() if "thumbnail" in row)
    for part in ("beta", "200", "1000", "1m 1s", "40% ████░░░░░░", "97%", "50 MiB", "200 MiB", "chunk 12 of 30"):
        assert part in busy


def test_a_host_that_does_not_answer_is_said_to() -> None:
    page = Page(lines=[Line(host="far", slot=None, note="pid 7 does not answer")], queues=[], rate=None, hosts=1)
    _, slots = tables(page, room=None)
    assert "does not answer" in slots.plain()
