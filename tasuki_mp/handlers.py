"""Handlers and resources: what an application registers, checked when it is registered. No database, no processes."""

from __future__ import annotations

import contextlib
import functools
import importlib
import inspect
import os
import sys
import traceback
from collections.abc import Callable
from inspect import Parameter
from typing import Any, Final, Generic, ParamSpec, Protocol, TypeVar, overload

import msgspec

from tasuki_mp import signature
from tasuki_mp.backoff import Backoff
from tasuki_mp.declared import Options
from tasuki_mp.errors import AppImportError, ConfigError, HandlerError, PayloadError
from tasuki_mp.job import FailedJob, Job, JobRow
from tasuki_mp.outcome import Policy, as_seconds
from tasuki_mp.payload import DEFAULT_MAX_TEXT, encode_result
from tasuki_mp.schedule import ScheduleInfo
from tasuki_mp.signature import Injection, UnsettledError
from tasuki_mp.wire import HandlerInfo

__all__ = ["Handler", "Injection", "Options", "Registry", "Resource", "encode_result", "load_app", "running_job"]

P = ParamSpec("P")
R = TypeVar("R")

_LONGEST_NAME: Final = 200
_OWN_FOLDER: Final = os.path.dirname(__file__) + os.sep

running_job: str | None = None
"""In a child, the job whose handler is running, in words; None everywhere else."""


class Handler(Generic[P, R]):
    """A registered function: still callable as what it was, and the maker of its jobs."""

    name: str
    function: Callable[P, R]
    kind: signature.Kind
    """How the function is run to its end."""
    info: HandlerInfo
    """What the supervisor needs to know of it, as data."""

    def __init__(self, registry: Registry, function: Callable[P, R], name: str, options: Options) -> None:
        functools.update_wrapper(self, function)
        self.name = name
        self.function = function
        self.kind = signature.kind_of(function)
        self._registry = registry
        self._options = options
        self._parameters = signature.parameters(function, f"handler {name!r}")
        self._settled: tuple[signature.Plan, tuple[Injection, ...]] | None = None
        # A callable backoff is asked in the child; a death of the child is followed by the default one.
        backoff = options.backoff if isinstance(options.backoff, Backoff) else Backoff()
        policy = Policy(
            max_crashes=options.max_crashes,
            backoff=backoff,
            fence=options.fence,
            limits=options.limits,
            cancel_grace=options.cancel_grace,
            max_interruptions=options.max_interruptions,
            rules=options.rules,
            on_failed=options.on_failed,
        )
        self.info = HandlerInfo(
            name=name,
            queue=options.queue,
            priority=options.priority,
            max_attempts=options.max_attempts,
            policy=policy,
        )

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run the function here and now: no job, no database."""
        return self.function(*args, **kwargs)

    def __repr__(self) -> str:
        return f"<handler {self.name!r}>"

    # Editors show the first signature. The second is what makes type checkers accept a call that leaves out what is
    # injected, which no annotation can express; a call that does not fit raises PayloadError at once.
    @overload
    def job(self, *args: P.args, **kwargs: P.kwargs) -> Job: ...
    @overload
    def job(self, *args: Any, **kwargs: Any) -> Job: ...
    def job(self, *args: Any, **kwargs: Any) -> Job:
        """A job that will run this handler with these arguments; nothing is inserted yet.

        Takes the function's own arguments without those that are injected. Raises PayloadError if they don't fit.
        """
        plan, _ = self._settled or self.settle()
        text = plan.encode(args, kwargs, limit=self._registry.max_payload)
        options = self._options
        return Job(
            JobRow(
                handler=self.name,
                payload=text,
                queue=options.queue,
                priority=options.priority,
                max_attempts=options.max_attempts,
            )
        )

    def decode(self, payload: str) -> dict[str, Any]:
        """The arguments that a payload gives, typed, by name. Raises PayloadError."""
        plan, _ = self._settled or self.settle()
        return plan.decode(payload)

    def parameter(self, name: str) -> Parameter | None:
        """The function's parameter of that name."""
        return next((each for each in self._parameters if each.name == name), None)

    @property
    def max_result(self) -> int:
        """Bytes of JSON text that what it returns may have."""
        return self._registry.max_result

    @property
    def plan(self) -> signature.Plan:
        """How the function is called with a payload."""
        plan, _ = self._settled or self.settle()
        return plan

    @property
    def injections(self) -> tuple[Injection, ...]:
        """The parameters that are filled in when a job runs, and with what."""
        _, injections = self._settled or self.settle()
        return injections

    @functools.cached_property
    def may_follow_up(self) -> bool:
        """Whether its jobs have a way to ask for follow-up jobs: a context, or that they yield them."""
        return self.kind in {"generator", "async generator"} or any(each.resource is None for each in self.injections)

    def answer(self, error: BaseException, attempt: int) -> tuple[bool, float | None]:
        """Whether a job that failed with this exception may be tried again, and after how many seconds.

        None leaves the delay to the declared backoff. What a backoff function raises is raised.
        """
        options = self._options
        if isinstance(error, options.fail_on) or (options.retry_on and not isinstance(error, options.retry_on)):
            return False, None
        if isinstance(options.backoff, Backoff):
            return True, None
        return True, as_seconds(options.backoff(attempt, error), what=f"the delay that {self.name}'s backoff returned")

    def settle(self) -> tuple[signature.Plan, tuple[Injection, ...]]:
        """Work out what each parameter is. Raises HandlerError, UnsettledError if a later definition may help."""
        injections: list[Injection] = []
        fillable: list[Parameter] = []
        kinds: dict[str, Any] = {}
        for parameter in self._parameters:
            kind = signature.resolve(self.function, parameter.annotation)
            resource = self._registry.resources.get(parameter.name)
            if signature.is_context(kind):
                injections.append(Injection(parameter.name, None))
            elif resource is not None:
                _require_agreement(f"handler {self.name!r}", parameter.name, kind, resource)
                injections.append(Injection(parameter.name, resource.name))
            else:
                fillable.append(parameter)
                kinds[parameter.name] = kind
        injected = [injection.parameter for injection in injections]
        self._settled = signature.Plan(self.name, fillable, kinds, injected), tuple(injections)
        return self._settled

    def unsettle(self) -> None:
        """Forget what `settle` found: another resource has been registered."""
        self._settled = None


class Resource(Generic[R]):
    """Something that handlers share, built once per child by its function and injected by name.

    A generator function yields it, and runs the rest when the child ends.
    """

    name: str
    function: Callable[..., Any]
    is_eager: bool
    is_generator: bool

    def __init__(self, registry: Registry, function: Callable[..., Any], name: str, *, is_eager: bool) -> None:
        # What contextlib.contextmanager wraps is a generator function, and is used as one.
        inner = inspect.unwrap(function)
        self.is_generator = inspect.isgeneratorfunction(inner)
        self.function = inner if self.is_generator else function
        self.name = name
        self.is_eager = is_eager
        self._registry = registry
        self._parameters = signature.parameters(function, f"resource {name!r}")

    @property
    def kind(self) -> Any:
        """The type it is annotated to be; Any if it isn't."""
        return signature.made_by(self.function)

    @property
    def injections(self) -> tuple[tuple[str, str], ...]:
        """Its parameters, each with the resource that goes there. Raises HandlerError for one that has none."""
        what = f"resource {self.name!r}"
        found: list[tuple[str, str]] = []
        for parameter in self._parameters:
            needed = self._registry.resources.get(parameter.name)
            kind = signature.resolve(self.function, parameter.annotation)
            if needed is not None:
                _require_agreement(what, parameter.name, kind, needed)
                found.append((parameter.name, needed.name))
            elif signature.is_context(kind):
                raise HandlerError(f"{what}: {parameter.name} can't be the context: a resource outlives the job")
            elif parameter.default is Parameter.empty:
                raise UnsettledError(f"{what}: no resource is named {parameter.name!r}, and it has no default")
        return tuple(found)


class Registry:
    """The handlers and resources of one application."""

    def __init__(self, *, max_payload: int = DEFAULT_MAX_TEXT, max_result: int = DEFAULT_MAX_TEXT) -> None:
        self.handlers: dict[str, Handler[..., Any]] = {}
        self.resources: dict[str, Resource[Any]] = {}
        self.schedules: dict[str, Callable[[], ScheduleInfo]] = {}
        """Each schedule by its name; made when everything that its handler needs is defined."""
        self.max_payload = max_payload
        self.max_result = max_result

    def add_handler(self, function: Callable[P, R], name: str | None = None, **options: Any) -> Handler[P, R]:
        """Register a handler. Raises HandlerError, with the reason, for what can't be one."""
        inner = _plain_function(function, "handler", name)
        name = _checked_name(inner, "handler", name)
        what = f"handler {name!r}"
        if (yields := signature.yielded_by(inner)) is not None and yields is not Job:
            raise HandlerError(
                f"{what}: is a generator, and what a handler yields is enqueued: jobs. Annotate it as Iterator[Job], or "
                "return a list"
            )
        if name in self.handlers:
            other = self.handlers[name].function
            raise HandlerError(f"{what}: is there already ({_where(other)}); give one of them another name=")
        handler = Handler(self, function, name, Options(what, **options))
        with contextlib.suppress(UnsettledError):  # what is missing may still be defined: check() will tell
            handler.settle()
        self.handlers[name] = handler
        return handler

    def add_resource(self, function: Callable[..., R], name: str | None = None, *, is_eager: bool = False) -> None:
        """Register a resource. Raises HandlerError, with the reason, for what can't be one."""
        inner = _plain_function(function, "resource", name)
        name = _checked_name(inner, "resource", name)
        if inspect.iscoroutinefunction(inner) or inspect.isasyncgenfunction(inner):
            reason = "is async, but each job has an event loop of its own, which a shared resource would outlive"
            raise HandlerError(f"resource {name!r}: {reason}; build it in a plain function")
        if name in self.resources:
            other = self.resources[name].function
            raise HandlerError(f"resource {name!r}: is there already ({_where(other)})")
        self.resources[name] = Resource(self, function, name, is_eager=is_eager)
        for handler in self.handlers.values():
            handler.unsettle()

    def check(self) -> None:
        """Check everything that could not be checked at registration. Raises HandlerError."""
        for resource in self.resources.values():
            self._refuse_cycle(resource, ())
        for handler in self.handlers.values():
            handler.settle()
        for handler in self.handlers.values():
            self._check_on_failed(handler)
        self.schedule_infos()

    def schedule_infos(self) -> list[ScheduleInfo]:
        """The schedules as data. Raises HandlerError or ScheduleError for one that can't be."""
        return [make() for make in self.schedules.values()]

    def _check_on_failed(self, handler: Handler[..., Any]) -> None:
        """What follows on a failure must exist, take what it is told, and never lead back to where it began."""
        what, seen = f"handler {handler.name!r}: on_failed", [handler.name]
        follower = handler.info.policy.on_failed
        while follower is not None:
            if follower not in self.handlers:
                raise HandlerError(f"{what}: there is no handler {follower!r}")
            if follower in seen:
                raise HandlerError(f"{what}: its jobs would follow on one another for ever: {' -> '.join(seen)}")
            seen.append(follower)
            follower = self.handlers[follower].info.policy.on_failed
        if len(seen) > 1:
            sample = FailedJob(id=1, handler=handler.name, queue="default", attempt=1, error={"kind": "error"})
            try:
                self.handlers[seen[1]].decode(msgspec.json.encode(sample).decode())
            except PayloadError as error:
                raise HandlerError(
                    f"{what}: {seen[1]!r} can't take what it would be told ({error.path}: {error.reason}); let it have one "
                    "argument, annotated as tasuki_mp.FailedJob"
                ) from error

    def _refuse_cycle(self, resource: Resource[Any], above: tuple[str, ...]) -> None:
        if resource.name in above:
            circle = " -> ".join((*above[above.index(resource.name) :], resource.name))
            raise HandlerError(f"resource {resource.name!r}: needs itself: {circle}")
        for _, needed in resource.injections:
            self._refuse_cycle(self.resources[needed], (*above, resource.name))


class Application(Protocol):
    """What `load_app` finds."""

    @property
    def registry(self) -> Registry: ...
    @property
    def max_result(self) -> int: ...
    @property
    def version(self) -> str: ...
    def load(self) -> None: ...


def load_app(app: str, app_dir: str = "") -> Application:
    """The application that `pkg.module:name` names, with all its modules imported and everything checked.

    `app_dir`, or else the working directory, comes first on the module path. Raises ConfigError if the spelling is
    wrong or it names something else, AppImportError for whatever the import raises.
    """
    module_name, colon, attribute = app.partition(":")
    if not colon or not module_name or not attribute:
        raise ConfigError(f"{app!r} names no application; write it as package.module:name")
    if app_dir not in sys.path:
        sys.path.insert(0, app_dir)
    try:
        module = importlib.import_module(module_name)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise AppImportError(app, import_report(error)) from error
    try:
        found: Any = functools.reduce(getattr, attribute.split("."), module)
    except AttributeError as error:
        raise ConfigError(f"{app!r}: the module {module_name} has no {attribute!r}") from error
    if not isinstance(getattr(found, "registry", None), Registry):
        raise ConfigError(f"{app!r} is {type(found).__name__}, not a tasuki_mp.Tasuki application")
    application: Application = found
    try:
        application.load()
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise AppImportError(app, import_report(error)) from error
    return application


def import_report(error: BaseException) -> str:
    """The traceback of a failed import, without the frames of the import machinery and ours."""
    report = traceback.TracebackException.from_exception(error)
    frames = [frame for frame in report.stack if not _is_machinery(frame.filename)]
    report.stack = traceback.StackSummary.from_list(frames)
    return "".join(report.format())


def _is_machinery(filename: str) -> bool:
    return filename.startswith(("<frozen ", _OWN_FOLDER)) or filename == importlib.__file__


def _plain_function(function: Any, what: str, name: str | None) -> Callable[..., Any]:
    shown = name or getattr(function, "__name__", None) or repr(function)
    if isinstance(function, Handler | Resource):
        raise HandlerError(f"{what} {shown!r}: is registered already")
    if not inspect.isfunction(function):
        raise HandlerError(f"{what} {shown!r}: must be a function (def or async def), not {type(function).__name__}")
    inner = inspect.unwrap(function)
    if not inspect.isfunction(inner):
        raise HandlerError(f"{what} {shown!r}: wraps {type(inner).__name__}, not a function")
    owner = inner.__qualname__.rpartition(".")[0]
    if owner and not owner.endswith("<locals>"):
        raise HandlerError(
            f"{what} {shown!r}: is defined in the class {owner}; only plain functions can be called by name"
        )
    return inner


def _checked_name(inner: Callable[..., Any], what: str, name: Any) -> str:
    if name is None:
        if inner.__name__ == "<lambda>":
            raise HandlerError(f"a lambda has no name that a {what} could be called by: use def, or give it a name=")
        name = inner.__name__
    if not isinstance(name, str) or not 1 <= len(name) <= _LONGEST_NAME or not name.isprintable() or " " in name:
        raise HandlerError(f"{what} {name!r}: a name has 1 to {_LONGEST_NAME} printable characters and no space")
    if what == "resource" and not name.isidentifier():
        raise HandlerError(f"{what} {name!r}: the name must be one that a parameter can have")
    return name


def _require_agreement(what: str, parameter: str, wanted: Any, resource: Resource[Any]) -> None:
    made = resource.kind
    if not signature.agree(wanted, made):
        raise HandlerError(
            f"{what}: {parameter} is annotated {wanted!r}, but the resource of that name makes {made!r}; "
            "rename one of them, or make the annotations agree"
        )


def _where(function: Callable[..., Any]) -> str:
    code = inspect.unwrap(function).__code__
    return f"{code.co_filename}:{code.co_firstlineno}"
