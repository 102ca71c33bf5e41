"""Answers the question where a running job is: the kind "stack" of commands."""

from __future__ import annotations

import socket

from tasuki_mp.child.describe import storable
from tasuki_mp.store.commands import Command, Stack
from tasuki_mp.supervisor import clock
from tasuki_mp.supervisor.commands import Answer, CannotAnswerError
from tasuki_mp.supervisor.dispatch import Dispatcher
from tasuki_mp.supervisor.signals import NoStackError


def stacks(dispatcher: Dispatcher) -> Answer:
    """What answers that question about the jobs of this dispatcher."""

    async def answer(command: Command) -> Stack:
        key = (command.job_id, command.lease_no)
        place = dispatcher.child_running(key)
        if place is None:
            raise CannotAnswerError("it waits here for a free slot, or has just ended")
        slot, child = place
        entered = child.entered_at(key)
        if entered is None:
            raise CannotAnswerError("it waits here behind another job, or has just ended")
        try:
            text = await slot.stack(child)
        except NoStackError as error:
            raise CannotAnswerError(str(error)) from error
        # One child runs one job after the other: what still runs has run all the time.
        if not child.is_in_handler(key):
            raise CannotAnswerError("it has just ended")
        ran_for = clock.now() - entered
        return Stack(
            text=storable(text), host=socket.gethostname(), pid=child.pid, slot=slot.index, ran_for=round(ran_for, 3)
        )

    return answer
