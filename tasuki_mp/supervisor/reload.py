"""`run --reload`, for development: when Python code below the application's folder changes, every child is replaced.

A child that runs a job finishes it; nothing is preloaded, so the next one imports the code as it is then. A change that
can't be imported is shown once and the slots stay empty until the next change. What handlers there are, and what they
declare, follows the code.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec
import psycopg

from tasuki_mp import logs, wire
from tasuki_mp.errors import ConfigError
from tasuki_mp.schedule import ScheduleInfo
from tasuki_mp.store import schedules, upkeep
from tasuki_mp.store.words import in_words
from tasuki_mp.supervisor import tasks
from tasuki_mp.supervisor.dispatch import Dispatcher
from tasuki_mp.supervisor.leaser import Leaser
from tasuki_mp.supervisor.link import Link, UnavailableError
from tasuki_mp.supervisor.rescue import Rescuer
from tasuki_mp.supervisor.scheduler import Scheduler
from tasuki_mp.supervisor.voice import Voice

if TYPE_CHECKING:
    from watchfiles import Change

TOGETHER_MS: Final = 200
"""Changes that come so soon after each other are one: editors write, rename and touch."""
STEP_MS: Final = 20
NAMES_SHOWN: Final = 5


class Reload:
    """Watches `folder` from `start` on. `show` prints a line for people; without it tracebacks are part of the log."""

    def __init__(self, folder: str, dispatcher: Dispatcher, show: Callable[[str], None] | None) -> None:
        try:
            import watchfiles
        except ImportError:
            raise ConfigError("--reload needs the package watchfiles: pip install 'tasuki-mp[reload]'") from None
        self._watchfiles = watchfiles
        self._folder = Path(folder).absolute()
        self._dispatcher = dispatcher
        self._show = show
        self._shown = ""
        self._known: tuple[list[wire.HandlerInfo], list[ScheduleInfo]] | None = None
        self._tell: Callable[[wire.Hello], None] | None = None
        self._enough = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._telling: set[asyncio.Task[None]] = set()

    def start(self) -> asyncio.Task[None]:
        """Begin; the task ends by `stop` alone."""
        self._task = asyncio.create_task(self._watch(), name="reload")
        logs.event(logging.INFO, "watching for changes of the code", folder=str(self._folder))
        return self._task

    async def stop(self) -> None:
        self._enough.set()
        if self._task is not None:
            await asyncio.wait([self._task])
        for telling in list(self._telling):
            await tasks.end(telling)

    async def _watch(self) -> None:
        changes = self._watchfiles.awatch(
            self._folder,
            watch_filter=self._watchfiles.PythonFilter(),
            debounce=TOGETHER_MS,
            step=STEP_MS,
            stop_event=self._enough,
            ignore_permission_denied=True,
        )
        async for changed in changes:
            logs.event(logging.INFO, "the code has changed, children are replaced", files=self._names(changed))
            self._shown = ""
            for slot in self._dispatcher.slots:
                slot.renew("the code has changed")

    def _names(self, changed: set[tuple[Change, str]]) -> str:
        names = sorted({str(Path(path).relative_to(self._folder)) for _, path in changed})
        more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
        return ", ".join(names[:NAMES_SHOWN]) + more

    def failed(self, traceback: str) -> None:
        """A child could not import the application: say so, once for each change."""
        if traceback == self._shown:
            return
        self._shown = traceback
        logs.event(
            logging.ERROR,
            "the application could not be imported, waiting for the next change",
            traceback=traceback.rstrip() if self._show is None else None,
        )
        if self._show is not None:
            for line in traceback.rstrip().split("\n"):
                self._show(line)

    # ── what the code declares ────────────────────────────────────────────────────────────────────────────────────────

    def work(
        self,
        hello: wire.Hello,
        *,
        leaser: Leaser,
        link: Link,
        rescuer: Rescuer,
        scheduler: Scheduler | None,
        voice: Voice,
        has_own_queues: bool,
    ) -> None:
        """From now on, tell these parts what handlers and schedules there are.

        `has_own_queues`: whatever they are, the queues stay.
        """

        async def tell(news: wire.Hello) -> None:
            names = sorted(info.name for info in news.handlers)
            row = msgspec.structs.replace(rescuer.row, handlers=names)
            if not has_own_queues:
                queues = sorted({info.queue for info in news.handlers})
                row = msgspec.structs.replace(row, queues=queues)
                leaser.serve(dict.fromkeys(queues, 1))
            if scheduler is not None:
                row = msgspec.structs.replace(row, schedules=sorted(info.name for info in news.schedules))
            rescuer.row = row
            try:
                await link.call(upkeep.register, row)
                await link.call(upkeep.register_handlers, news.handlers, news.app_version)
                if scheduler is not None:
                    await voice.send(
                        lambda notify: link.call(schedules.register, news.schedules, news.app_version, notify=notify)
                    )
                    scheduler.mind(news.schedules, names)
            except (UnavailableError, psycopg.Error) as error:
                logs.event(logging.WARNING, "the changed handlers were not written down", error=in_words(error))
            leaser.look_everywhere()

        self._known = hello.handlers, hello.schedules
        self._tell = lambda news: self._run(tell(news))

    def hello(self, hello: wire.Hello) -> None:
        """A child has come up with the code as it is now."""
        self._shown = ""
        declared = hello.handlers, hello.schedules
        if self._tell is not None and declared != self._known:
            self._known = declared
            self._dispatcher.policies = {info.name: info.policy for info in hello.handlers}
            logs.event(logging.INFO, "the handlers have changed", handlers=",".join(sorted(self._dispatcher.policies)))
            self._tell(hello)

    def _run(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._telling.add(task)
        task.add_done_callback(self._telling.discard)
