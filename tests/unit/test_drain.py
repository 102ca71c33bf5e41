"""What a drain asks, without a database."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

from tasuki_mp.supervisor.drain import Drain


def test_a_question_that_fails_as_nobody_foresaw_is_told() -> None:
    """Else the program would wait for its answer for ever."""
    error = ValueError("nobody foresaw it")

    async def main() -> BaseException:
        told: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()

        async def sweep() -> None:
            raise error

        flow = SimpleNamespace(closer=SimpleNamespace(sweep=sweep), failed=told.set_result)
        drain = Drain("all", cast("Any", None), cast("Any", flow), queues=[], on_drained=cast("Any", None))
        drain.idle()
        return await asyncio.wait_for(told, 60)

    assert asyncio.run(main()) is error
