"""The supervisor: starts the parts, waits for the end, stops them in stages. Never runs the application's code.

One asyncio loop (uvloop where there is one), two threads beside it: the heartbeat's, and the process thread that starts and
buries children.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import resource
import signal
import sys
from collections.abc import Awaitable, Callable
from typing import Any, Final

import msgspec
import psycopg

from tasuki_mp import logs, wire
from tasuki_mp.child.application import AppSpec
from tasuki_mp.child.main import Setting
from tasuki_mp.config import ExitCode, RunConfig
from tasuki_mp.errors import AppImportError, DatabaseError
from tasuki_mp.job import Lease
from tasuki_mp.limits import Room
from tasuki_mp.store import schedules, tls, upkeep
from tasuki_mp.store.words import in_words
from tasuki_mp.supervisor import clock, crew, footing, identity, tasks, tree
from tasuki_mp.supervisor.alone import Alone
from tasuki_mp.supervisor.birth import Births, ImportFailedError
from tasuki_mp.supervisor.child import Nursery
from tasuki_mp.supervisor.closer import Closer
from tasuki_mp.supervisor.commands import Commands
from tasuki_mp.supervisor.dispatch import READY_MOST
from tasuki_mp.supervisor.drain import Drain
from tasuki_mp.supervisor.flow import Flow
from tasuki_mp.supervisor.heartbeat import Heartbeat
from tasuki_mp.supervisor.hints import Hints
from tasuki_mp.supervisor.hooks import Hooks
from tasuki_mp.supervisor.housekeeper import Housekeeper
from tasuki_mp.supervisor.keeper import Keeper
from tasuki_mp.supervisor.leaser import Leaser
from tasuki_mp.supervisor.link import Link, UnavailableError
from tasuki_mp.supervisor.listener import Listener
from tasuki_mp.supervisor.metrics import Metrics
from tasuki_mp.supervisor.outbox import Outbox
from tasuki_mp.supervisor.overview import overview
from tasuki_mp.supervisor.reaper import Reaper
from tasuki_mp.supervisor.recycle import Recycling
from tasuki_mp.supervisor.reload import Reload
from tasuki_mp.supervisor.rescue import Rescuer
from tasuki_mp.supervisor.scheduler import Scheduler
from tasuki_mp.supervisor.slot import Slot
from tasuki_mp.supervisor.stacks import stacks
from tasuki_mp.supervisor.tails import tails
from tasuki_mp.supervisor.ticker import Ticker
from tasuki_mp.supervisor.vitals import Vitals
from tasuki_mp.supervisor.voice import Voice

START_TRIES: Final = 5
"""Failures in a row to start a child, before there ever was one, after which the supervisor gives up."""
KILL_FOR: Final = 10.0
"""Seconds for killed jobs to be buried."""
BURY_FOR: Final = 30.0
"""Seconds for every child to be buried, at the very end."""
FLUSH_FOR: Final = 10.0
"""Seconds for the last outcomes to be written."""
GOODBYE_FOR: Final = 5.0
DESCRIPTORS_A_SLOT: Final = 32
COLLECT_AFTER: Final = 10_000
"""New objects between two looks for garbage."""
TEXT_LIMIT: Final = 8 * 1024
NAMES_SHOWN: Final = 5


def run(config: RunConfig, *, hooks: Hooks | None = None) -> int:
    """Run a supervisor until it is told to stop, or is drained; the exit code. Blocks; call it on the main thread.

    Raises TasukiError for what the user must mend: the application's import, the database.
    """
    footing.require()
    writer = logs.set_up(level=config.log_level, log_format=config.log_format)
    try:
        import uvloop
    except ImportError:
        return asyncio.run(_run(config, hooks))
    else:
        return uvloop.run(_run(config, hooks))
    finally:
        writer.stop()


async def _run(config: RunConfig, hooks: Hooks | None) -> int:
    for lack in footing.lacks():
        logs.event(logging.INFO, "not to be had here", what=lack.what, instead=lack.instead)
    if (risk := tls.unverified(config.dsn)) is not None:
        logs.event(logging.WARNING, str(risk), host=risk.host, sslmode=risk.sslmode, advice=risk.advice)
    return await Supervisor(config, hooks=hooks or Hooks()).run()


class Supervisor:
    """One run of a supervisor. `hooks` lets a test stop it at named points."""

    def __init__(self, config: RunConfig, *, hooks: Hooks) -> None:
        self._config = config
        self._hooks = hooks
        self._metrics = Metrics()
        self._flow = Flow(
            lease_for=config.lease,
            memory_limit=config.memory_limit,
            recycling=Recycling(max_jobs=config.max_jobs_per_child, max_age=config.max_child_age),
            metrics=self._metrics,
            hooks=hooks,
            on_idle=self._idle,
            on_hello=self._hello_came,
            on_start_failed=self._start_failed,
            failed=self._failed,
        )
        is_preloaded = config.preload is not None and not config.reload
        spec = AppSpec(config.app, config.app_dir or "", is_preloaded=is_preloaded, modules=config.preload or ())
        self._nofile = _raise_descriptor_limit(config.procs)
        self._nursery = Nursery(spec, self._setting_of)
        self._births = Births(self._nursery)
        self._slots = self._flow.dispatcher.slots
        self._first_hello: asyncio.Future[wire.Hello] = asyncio.get_running_loop().create_future()
        self._ended = asyncio.Event()
        """Set when there is a reason to stop: a signal, a drained queue, an error."""
        self._second_signal = asyncio.Event()
        self._signals = 0
        self._error: BaseException | None = None
        self._exit_code = ExitCode.OK
        # Handlers' output goes out on a thread of its own: a reader that is slow must not stop the loop.
        self._output = logs.LineWriter(sys.stdout)
        self._vitals = Vitals(config, self._flow, self._metrics)
        self._drain: Drain | None = None
        self._scheduler: Scheduler | None = None
        """None if it fires no schedules: a program that ends when nothing is left must not make more."""
        self._cancel_hints = Hints(self._beat_now)
        self._schedule_hints = Hints(self._schedules_may_have_changed)
        self._reload: Reload | None = None
        if config.reload:
            show = None if config.log_format == "json" else self._show_import
            self._reload = Reload(config.app_dir or ".", self._flow.dispatcher, show)

    # ── life ──────────────────────────────────────────────────────────────────────────────────────────────────────────

    async def run(self) -> int:
        """Start, work, stop; the exit code."""
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(self._callback_failed)
        loop.set_default_executor(crew.hands())
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, self._signalled, number)
        self._output.start()
        self._flow.reaper = Reaper(self._known_pids)
        self._flow.attic.open()
        orphans = asyncio.create_task(asyncio.to_thread(self._flow.attic.remove_orphans))
        tasks.watch(orphans, self._failed)
        if self._reload is not None:
            tasks.watch(self._reload.start(), self._failed)
        try:
            hello = await self._start_first_child()
            if hello is not None:
                await self._work(hello)
            if self._error is None:
                logs.event(logging.INFO, "stopped", exit_code=int(self._exit_code))
        finally:
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                loop.remove_signal_handler(number)
            if self._reload is not None:
                await self._reload.stop()
            # What no kill has reached must not keep us for ever: it dies with us.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(BURY_FOR):
                    await asyncio.gather(*(slot.stop() for slot in self._slots))
            await self._births.stop()
            await asyncio.to_thread(self._flow.attic.close)
            self._nursery.thread.shutdown(wait=False)
            self._output.stop()
        if self._error is not None:
            raise self._error
        return int(self._exit_code)

    async def _work(self, hello: wire.Hello) -> None:
        config, flow = self._config, self._flow
        queues = dict(config.queues) or dict.fromkeys(sorted({info.queue for info in hello.handlers}), 1)
        for queue in sorted(set(queues) - {info.queue for info in hello.handlers}):
            # Jobs may be sent there all the same, but more often it is a slip.
            logs.event(logging.WARNING, "no handler of this application is in that queue", queue=queue)
        handlers = sorted(info.name for info in hello.handlers)
        flow.dispatcher.policies = {info.name: info.policy for info in hello.handlers}
        flow.dispatcher.room = Room(memory=config.memory_limit, cpus=config.procs)
        me = identity.own_row(
            procs=config.procs,
            queues=sorted(queues),
            handlers=handlers,
            lease=config.lease,
            schedules=sorted(info.name for info in hello.schedules) if config.drain is None else None,
            app=config.app,
        )
        timeout = max(5.0, config.lease / 2)
        lease_link, finish_link, upkeep_link = (
            Link(config.dsn, name=name, timeout=timeout) for name in ("lease", "finish", "upkeep")
        )
        voice = Voice(is_wanted=config.notify)
        flow.outbox = Outbox(
            finish_link,
            Alone(config.dsn, owner=me.owner),
            owner=me.owner,
            bound=2 * READY_MOST + 10 * config.procs,
            events=flow,
            voice=voice,
            metrics=self._metrics,
            hooks=self._hooks,
        )
        flow.heartbeat = Heartbeat(
            config.dsn,
            owner=me.owner,
            lease_for=config.lease,
            book=flow.book,
            on_verdicts=flow.verdicts,
            hooks=self._hooks,
        )
        flow.keeper = Keeper(finish_link, owner=me.owner, running=flow.saying)
        flow.closer = Closer(upkeep_link)
        self._leaser = leaser = flow.leaser = Leaser(
            lease_link,
            owner=me.owner,
            lease_for=config.lease,
            poll=config.poll,
            procs=config.procs,
            queues=queues,
            book=flow.book,
            events=flow,
            voice=voice,
            metrics=self._metrics,
            hooks=self._hooks,
        )
        rescuer = Rescuer(
            upkeep_link,
            me=me,
            heartbeat=flow.heartbeat,
            release_unknown=leaser.release_unknown,
            look_everywhere=leaser.look_everywhere,
            sweep=flow.closer.sweep,
            voice=voice,
            hooks=self._hooks,
        )
        self._commands = Commands(
            upkeep_link,
            owner=me.owner,
            kinds={
                "stack": stacks(flow.dispatcher),
                "logs": tails(flow.dispatcher),
                "slots": overview(lambda: self._slots, lambda: flow.finished),
            },
        )
        housekeeper = Housekeeper(config.dsn, upkeep_link, keep=config.keep)
        listener = Listener(config.dsn, owner=me.owner, events=self)
        self._upkeep = upkeep_link
        if config.drain is not None:
            self._drain = Drain(
                config.drain,
                upkeep_link,
                flow,
                queues=sorted(queues),
                on_drained=self._drained,
            )
        else:
            self._scheduler = Scheduler(
                Link(config.dsn, name="schedule", timeout=timeout),
                upkeep_link,
                owner=me.owner,
                infos=hello.schedules,
                handlers=handlers,
                voice=voice,
                hooks=self._hooks,
            )
        if self._reload is not None:
            self._reload.work(
                hello,
                leaser=leaser,
                link=upkeep_link,
                rescuer=rescuer,
                scheduler=self._scheduler,
                voice=voice,
                has_own_queues=bool(config.queues),
            )
        try:
            await upkeep_link.call(upkeep.ensure_partitions)
            await upkeep_link.call(upkeep.register, me)
            await upkeep_link.call(upkeep.register_handlers, hello.handlers, hello.app_version)
            namesakes = await upkeep_link.call(upkeep.same_handlers, me)
            if self._scheduler is not None:
                await voice.send(
                    lambda notify: upkeep_link.call(
                        schedules.register, hello.schedules, hello.app_version, notify=notify
                    )
                )
        except (UnavailableError, psycopg.Error) as error:
            raise DatabaseError(f"the database can't be used: {in_words(error)}") from error
        for other in namesakes:
            # Names are global in a database: what producers get of defaults is whoever's started last.
            logs.event(
                logging.WARNING,
                "another application has handlers of the same name",
                handlers=_few(other.handlers),
                app=other.app,
                host=other.host,
            )
        self._vitals.start()
        for slot in self._slots[1:]:
            tasks.watch(slot.start(), self._failed)
        tasks.watch(flow.outbox.start(), self._failed)
        tasks.watch(flow.keeper.start(), self._failed)
        flow.heartbeat.start(self._failed)
        tasks.watch(leaser.start(), self._failed)
        tasks.watch(rescuer.start(), self._failed)
        tasks.watch(self._commands.start(), self._failed)
        tasks.watch(flow.closer.start(), self._failed)
        tasks.watch(housekeeper.start(), self._failed)
        if self._scheduler is not None:
            tasks.watch(self._scheduler.start(), self._failed)
        if config.notify:
            tasks.watch(listener.start(), self._failed)
        ticker = Ticker(flow, self._vitals, lease=config.lease)
        tasks.watch(ticker.start(), self._failed)
        # What was loaded by now stays: a full collection need not look at it again, which took 50 ms of the loop's time.
        gc.collect()
        gc.freeze()
        # Nor need the jobs that wait here be looked at at every 700 of them: that took a twentieth of the loop's time.
        gc.set_threshold(COLLECT_AFTER)
        logs.event(
            logging.INFO,
            "started",
            app=config.app,
            procs=config.procs,
            memory_limit=config.memory_limit,
            queues=",".join(sorted(queues)),
            handlers=len(handlers),
            pid=os.getpid(),
        )
        await self._ended.wait()
        self._vitals.is_stopping = True
        if self._scheduler is not None:
            await self._scheduler.stop()
        await self._quiesce()
        await listener.stop()  # only now: what still runs can be canceled, and asked where it is
        self._cancel_hints.stop()
        self._schedule_hints.stop()
        await rescuer.stop()
        await self._commands.stop()
        await housekeeper.stop()
        await flow.keeper.stop()
        is_flushed = await flow.outbox.drained(FLUSH_FOR)
        await ticker.stop()
        await flow.outbox.stop()
        await flow.closer.stop()
        await flow.heartbeat.stop()
        await self._say_goodbye(me, is_flushed=is_flushed)
        for link in (lease_link, finish_link, upkeep_link):
            await link.close()
        await asyncio.to_thread(self._vitals.stop)

    async def _start_first_child(self) -> wire.Hello | None:
        """The first child's hello, which says what the application is; None when we were told to stop before it came."""
        show = self._show_line
        self._slots.extend(Slot(n, self._births, self._flow, show, self._hooks) for n in range(self._config.procs))
        hello = await self._hello_of_first()
        if hello is not None and hello.leftovers and self._nursery.spec.is_preloaded:
            logs.event(
                logging.WARNING,
                "the application's import leaves what a fork breaks, so each child imports it itself",
                leftovers=", ".join(hello.leftovers),
            )
            self._nursery.spec = msgspec.structs.replace(self._nursery.spec, is_preloaded=False)
            await self._slots[0].stop()
            await asyncio.to_thread(_end_forkserver, hello.forkserver_pid)
            self._slots[0] = Slot(0, self._births, self._flow, show, self._hooks)
            self._first_hello = asyncio.get_running_loop().create_future()
            hello = await self._hello_of_first()
        if not self._nursery.spec.is_preloaded:
            # A spare fits any slot only if slots are all alike.
            self._births.keep_spare = not self._config.slot_env and not self._config.reload
        if hello is not None:
            logs.event(logging.DEBUG, "application imported", seconds=round(hello.import_seconds, 3))
        return hello

    async def _hello_of_first(self) -> wire.Hello | None:
        tasks.watch(self._slots[0].start(), self._failed)
        ended = asyncio.create_task(self._ended.wait())
        either: tuple[asyncio.Future[Any], ...] = (ended, self._first_hello)
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        ended.cancel()
        return self._first_hello.result() if self._first_hello.done() else None

    # ── stopping ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def _signalled(self, number: signal.Signals) -> None:
        self._signals += 1
        match self._signals:
            case 1:
                logs.event(logging.INFO, "stopping", signal=signal.Signals(number).name, grace=self._config.grace)
                self._ended.set()
            case 2:
                logs.event(logging.WARNING, "stopping now, running jobs are killed and given back")
                self._second_signal.set()
            case _:
                # Children die with us; what was not written runs again when its lease has expired.
                os._exit(ExitCode.FORCED)

    async def _quiesce(self) -> None:
        """First stage: lease no more, give back what has not started, let what runs end; then kill what still does."""
        flow = self._flow
        flow.dispatcher.quiesce()  # first: the leaser may have to wait for a database that does not answer
        flow.ask_all_to_stop()
        await self._leaser.stop()
        slots = [asyncio.create_task(slot.stop()) for slot in self._slots]
        second = asyncio.create_task(self._second_signal.wait())
        ended = asyncio.gather(*slots)
        either: tuple[asyncio.Future[Any], ...] = (ended, second)
        await asyncio.wait(either, timeout=self._config.grace, return_when=asyncio.FIRST_COMPLETED)
        second.cancel()
        deadline = clock.now() + KILL_FOR
        while not ended.done() and clock.now() < deadline:
            # Again and again, since a kill never hits a child that is between two jobs at that moment.
            flow.interrupt_all()
            await asyncio.wait({ended}, timeout=0.1)
        ended.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await ended
        await flow.settled()

    async def _say_goodbye(self, me: upkeep.SupervisorRow, *, is_flushed: bool) -> None:
        try:
            async with asyncio.timeout(GOODBYE_FOR):
                await _twice(self._leaser.release_unknown)
                await _twice(lambda: self._upkeep.call(upkeep.deregister, me.owner))
        except (UnavailableError, psycopg.Error, TimeoutError) as error:
            logs.event(logging.WARNING, "could not say goodbye to the database", error=in_words(error))
        if not is_flushed:
            logs.event(logging.ERROR, "outcomes not written, their jobs will run again", jobs=len(self._flow.outbox))
            self._exit_code = ExitCode.FORCED

    # ── what the parts tell ───────────────────────────────────────────────────────────────────────────────────────────

    def jobs_hinted(self, queue: str, look_back: float) -> None:
        self._leaser.hint(queue=queue, look_back=look_back)

    def jobs_ahead(self, queue: str) -> None:
        self._leaser.hint_ahead(queue=queue)

    def cancel_hinted(self) -> None:
        self._cancel_hints.hint()

    def command_hinted(self) -> None:
        self._commands.hint()

    def schedules_hinted(self) -> None:
        self._schedule_hints.hint()

    def notifications_missed(self) -> None:
        self._schedules_may_have_changed()
        self._commands.hint()
        self._leaser.look_everywhere()
        self._flow.heartbeat.beat_now()

    def _beat_now(self) -> None:
        self._flow.heartbeat.beat_now()

    def _schedules_may_have_changed(self) -> None:
        if self._scheduler is not None:
            self._scheduler.hint()

    def _start_failed(self, slot: Slot, error: Exception, failures: int) -> None:
        if self._reload is not None and isinstance(error, ImportFailedError):
            self._reload.failed(str(error))
            return
        has_worked = self._first_hello.done()
        if has_worked or not isinstance(error, ImportFailedError):
            reason = str(error) or type(error).__name__
            logs.event(logging.ERROR, "child did not start", slot=slot.index, reason=reason, failures=failures)
        if has_worked or self._error is not None:
            return  # the slot tries again, ever more rarely, and readiness says so
        if isinstance(error, ImportFailedError):
            self._error = AppImportError(self._config.app, str(error))
        elif failures >= START_TRIES:
            self._error = AppImportError(self._config.app, f"no child process comes up: {error}")
        else:
            return
        self._ended.set()

    def _failed(self, error: BaseException) -> None:
        """A part has failed in a way that nobody foresaw: end in an orderly way what can be, and raise it then."""
        if repr(error) == repr(self._error):
            return  # the same once more, as for each job that is killed as we end
        logs.event(
            logging.CRITICAL, "stopping after an unexpected error", error=f"{type(error).__name__}: {in_words(error)}"
        )
        self._error = self._error or error
        self._ended.set()

    def _callback_failed(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """What the loop found: an error in a callback may have left a job in nobody's hands."""
        error = context.get("exception")
        if isinstance(error, Exception) and "handle" in context:
            self._failed(error)
        else:
            loop.default_exception_handler(context)

    def _hello_came(self, hello: wire.Hello) -> None:
        if not self._first_hello.done():
            self._first_hello.set_result(hello)
        elif self._reload is not None:
            self._reload.hello(hello)

    def _setting_of(self, slot: int) -> Setting:
        variables = {name: values[slot] for name, values in self._config.slot_env}
        return Setting(self._nofile, self._flow.attic.path, variables, writes_bytecode=not self._config.reload)

    def _known_pids(self) -> set[int]:
        return {child.pid for slot in self._slots for child in slot.children if child.pid}

    def _show_import(self, line: str) -> None:
        self._output.write(f"import | {logs.escape(line)}")

    def _show_line(self, slot: int, lease: Lease | None, line: str) -> None:
        if self._config.log_format == "json":
            facts = lease.facts(slot) if lease else {"slot": slot}
            logs.event(logging.INFO, "output", **facts, line=line[:TEXT_LIMIT])
        else:
            self._output.write(f"job {lease.id if lease else '-'} | {logs.escape(line, limit=TEXT_LIMIT)}")

    def _idle(self) -> None:
        if self._drain is not None and not self._ended.is_set():
            self._drain.idle()

    def _drained(self, has_left: bool) -> None:
        if has_left:
            self._exit_code = ExitCode.DRAIN_LEFT
        self._ended.set()


def _few(names: list[str]) -> str:
    more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    return ",".join(names[:NAMES_SHOWN]) + more


async def _twice(call: Callable[[], Awaitable[object]]) -> None:
    """Call it, and again if its connection turns out to have died while it was idle."""
    try:
        await call()
    except UnavailableError:
        await call()


def _raise_descriptor_limit(procs: int) -> int:
    """Room for every slot's sockets and pipes; returns the soft limit that children get back."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = max(soft, 1024 + DESCRIPTORS_A_SLOT * procs)
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted if hard == resource.RLIM_INFINITY else min(hard, wanted), hard))
    return soft


def _end_forkserver(pid: int) -> None:
    """Kill the forkserver and wait for its end, so that the next child gets a new one."""
    with contextlib.suppress(ProcessLookupError):
        tree.kill_tree(pid)
