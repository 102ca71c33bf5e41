"""Answers the question what a running job has written: the kind "logs" of commands."""

from __future__ import annotations

import asyncio
from typing import Final

import msgspec

from tasuki_mp.store.commands import Command, Tail, TailArgs
from tasuki_mp.supervisor import clock
from tasuki_mp.supervisor.commands import Answer, CannotAnswerError
from tasuki_mp.supervisor.dispatch import Dispatcher
from tasuki_mp.supervisor.echo import Piece

LOOK_EVERY: Final = 0.1
"""Seconds between looks for whoever waits for more."""


def tails(dispatcher: Dispatcher) -> Answer:
    """What answers that question about the jobs of this dispatcher: with the next piece, once there is one."""

    async def answer(command: Command) -> Tail:
        try:
            asked = msgspec.json.decode(command.args, type=TailArgs)
        except msgspec.MsgspecError as error:
            raise CannotAnswerError(f"it was asked for something odd: {error}") from error
        deadline = clock.now() + asked.wait
        while True:
            piece = _piece(dispatcher, (command.job_id, command.lease_no), asked.start)
            if piece.text or clock.now() >= deadline:
                return Tail(lease_no=command.lease_no, start=piece.start, end=piece.end, text=piece.text)
            await asyncio.sleep(LOOK_EVERY)

    return answer


def _piece(dispatcher: Dispatcher, key: tuple[int, int], start: int) -> Piece:
    place = dispatcher.child_running(key)
    if place is None:
        raise CannotAnswerError("it waits here for a free slot, or has just ended")
    slot, child = place
    # What its child has finished and nobody has read of yet would be taken for this job's.
    if child.entered_at(key) is None or next(iter(child.inflight)) != key:
        raise CannotAnswerError("it waits here behind another job, or has just begun")
    return slot.piece(child, start)
