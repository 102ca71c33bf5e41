"""What a signature turns into: payloads, injected parameters, and the reasons why something is refused."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import enum
import functools
import sys
import textwrap
import types
from collections.abc import AsyncIterator, Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NotRequired, Protocol, TypedDict
from uuid import UUID

import msgspec
import pytest

from tasuki_mp import Backoff, Context, HandlerError, Job, PayloadError
from tasuki_mp.errors import AppImportError, ConfigError
from tasuki_mp.handlers import Injection, Registry, load_app
from tasuki_mp.wire import HandlerInfo

if TYPE_CHECKING:
    from nowhere import Elsewhere  # type: ignore[import-not-found]  # what only a type checker sees


class Model:
    pass


class BetterModel(Model):
    pass


class Predicts(Protocol):
    def predict(self) -> int: ...


class Size(msgspec.Struct):
    width: int
    height: int = 10


class Tree(msgspec.Struct):
    left: Tree | None = None
    note: Any = None


@dataclasses.dataclass
class Box:
    corner: Path
    size: Size | None = None


class Options(TypedDict):
    path: Path
    width: NotRequired[int]


class Color(enum.Enum):
    RED = "red"


class Level(enum.IntEnum):
    HIGH = 3


@pytest.fixture
def registry() -> Registry:
    return Registry()


# ── plain arguments ───────────────────────────────────────────────────────────────────────────────────────────────────


def thumbnail(path: str, width: int = 200, *, sharp: bool = False) -> str:
    return f"{path} {width} {sharp}"


@pytest.mark.parametrize(
    ("args", "kwargs", "text"),
    [
        (("a.png",), {}, '{"path":"a.png"}'),
        (("a.png", 3), {"sharp": True}, '{"path":"a.png","width":3,"sharp":true}'),
        ((), {"width": 3, "path": "a.png"}, '{"width":3,"path":"a.png"}'),
    ],
)
def test_arguments_become_a_payload_and_arguments_again(
    registry: Registry, args: tuple[Any, ...], kwargs: dict[str, Any], text: str
) -> None:
    handler = registry.add_handler(thumbnail)
    job = handler.job(*args, **kwargs)
    assert job.row.payload == text
    assert thumbnail(**handler.decode(text)) == thumbnail(*args, **kwargs)


@pytest.mark.parametrize(
    ("args", "kwargs", "path", "words"),
    [
        ((), {}, "$.path", "missing"),
        (("a",), {"widht": 3}, "$.widht", "unexpected; the payload has path, width, sharp"),
        (("a", 1, True), {}, "$", "3 positional arguments are given, and the payload has 2"),
        (("a",), {"path": "b"}, "$.path", "given twice"),
        ((1,), {}, "$.path", "Expected `str`, got `int`"),
        (("a", "3"), {}, "$.width", "Expected `int`, got `str`"),
        (("a", 3.0), {}, "$.width", "Expected `int`, got `float`"),
        (("a", None), {}, "$.width", "Expected `int`, got `null`"),
        ((Path("a"),), {}, "$.path", "Expected `str`"),
        ((dt.datetime(2024, 1, 1, tzinfo=dt.UTC),), {}, "$.path", "Expected `str`"),
        ((b"a",), {}, "$.path", "Expected `str`"),
        (("\0",), {}, "$.path", "NUL"),
        (("\ud800",), {}, "$.path", "surrogate"),
    ],
)
def test_a_call_that_does_not_fit_is_refused_when_the_job_is_built(
    registry: Registry, args: tuple[Any, ...], kwargs: dict[str, Any], path: str, words: str
) -> None:
    handler = registry.add_handler(thumbnail)
    with pytest.raises(PayloadError) as caught:
        handler.job(*args, **kwargs)
    assert (caught.value.handler, caught.value.path) == ("thumbnail", path)
    assert words in caught.value.reason
    assert path in str(caught.value)


@pytest.mark.parametrize(
    ("payload", "path"),
    [
        ("{}", "$.path"),
        ('{"path": "a", "w": 1}', "$.w"),
        ('{"path": 1}', "$.path"),
        ('{"path": "a", "width": 1.5}', "$.width"),
        ("[]", "$"),
        ("null", "$"),
        ('{"path": ', "$"),
        ('{"path": "a", "width": ' + "1" * 5000 + "}", "$.width"),
        ("[" * 10_000, "$"),
    ],
)
def test_a_payload_that_does_not_fit_is_refused_when_it_is_decoded(registry: Registry, payload: str, path: str) -> None:
    with pytest.raises(PayloadError) as caught:
        registry.add_handler(thumbnail).decode(payload)
    assert caught.value.path == path


def test_a_deep_payload_of_anything_is_refused_not_a_crash(registry: Registry) -> None:
    def anything(x: Any) -> None: ...

    with pytest.raises(PayloadError):
        registry.add_handler(anything).decode('{"x":' + "[" * 10_000 + "]" * 10_000 + "}")


@pytest.mark.parametrize(
    ("kind", "value", "text"),
    [
        (Path, Path("/a/b"), '"/a/b"'),
        (Path | None, None, "null"),
        (list[Path], [Path("a")], '["a"]'),
        (dict[Path, int], {Path("a"): 1}, '{"a":1}'),
        (dt.datetime, dt.datetime(2024, 5, 6, 7, 8, 9, 10, tzinfo=dt.UTC), '"2024-05-06T07:08:09.000010Z"'),
        (dt.datetime, dt.datetime(2024, 5, 6), '"2024-05-06T00:00:00"'),  # noqa: DTZ001  naive ones stay naive
        (dt.date, dt.date(2024, 5, 6), '"2024-05-06"'),
        (dt.timedelta, dt.timedelta(days=1, microseconds=1), '"P1DT0.000001S"'),
        (Decimal, Decimal("1.10"), '"1.10"'),
        (UUID, UUID(int=1), '"00000000-0000-0000-0000-000000000001"'),
        (Color, Color.RED, '"red"'),
        (Level, Level.HIGH, "3"),
        (bytes, b"\0\xff", '"AP8="'),
        (Literal["a", "b"], "b", '"b"'),
        (int | str | None, "x", '"x"'),
        (float, 3, "3"),
        (float, 1e300, "1e300"),
        (int, 2**70, "1180591620717411303424"),
        (tuple[int, str], (1, "a"), '[1,"a"]'),
        (set[int], {1}, "[1]"),
        (frozenset[str], frozenset("a"), '["a"]'),
        (Size | None, Size(1), '{"width":1,"height":10}'),
        (list[Box], [Box(Path("a"), Size(1))], '[{"corner":"a","size":{"width":1,"height":10}}]'),
        (Tree | None, Tree(Tree()), '{"left":{"left":null,"note":null},"note":null}'),
        (dict[str, object], {"a": [1, None]}, '{"a":[1,null]}'),
        (object, [1], "[1]"),
        (Any, {"a": 1.5}, '{"a":1.5}'),
        (Annotated[int, msgspec.Meta(ge=1)], 1, "1"),
    ],
)
def test_payload_types_come_back_equal(registry: Registry, kind: Any, value: Any, text: str) -> None:
    def handler(x: Any, y: int = 0) -> None: ...

    handler.__annotations__["x"] = kind
    registered = registry.add_handler(handler)
    job = registered.job(value)
    assert job.row.payload == f'{{"x":{text}}}'
    decoded = registered.decode(job.row.payload)["x"]
    assert decoded == value
    assert type(decoded) is type(value) or (kind is float and type(decoded) is float)


@pytest.mark.parametrize(
    ("kind", "value", "path"),
    [
        (dt.datetime, "2024-05-06T00:00:00", "$.x"),
        (bytes, "AP8=", "$.x"),
        (list[Size], [Size("wide")], "$.x[0].width"),  # type: ignore[arg-type]  # the mistake itself
        (Box, Box("a", Size(None)), "$.x.size.width"),  # type: ignore[arg-type]  # the mistake itself
        (Annotated[int, msgspec.Meta(ge=1)], 0, "$.x"),
        (float | None, float("nan"), "$.x"),
        (Any, [1, float("inf")], "$.x[1]"),
        (Literal["a"], "b", "$.x"),
    ],
)
def test_values_are_checked_in_depth_and_strictly(registry: Registry, kind: Any, value: Any, path: str) -> None:
    def handler(x: Any, y: int = 0) -> None: ...

    handler.__annotations__["x"] = kind
    with pytest.raises(PayloadError) as caught:
        registry.add_handler(handler).job(value)
    assert caught.value.path == path


def test_no_annotation_means_any_json_value(registry: Registry) -> None:
    def loose(x, y=None): ...  # type: ignore[no-untyped-def]  # the point

    handler = registry.add_handler(loose)
    assert handler.decode(handler.job({"a": [1]}).row.payload) == {"x": {"a": [1]}}


def test_the_limit_is_the_registry_s() -> None:
    handler = Registry(max_payload=30).add_handler(thumbnail)
    assert len(handler.job("x" * 19).row.payload) == 30
    with pytest.raises(PayloadError, match="limit is 30"):
        handler.job("x" * 20)


def test_none_needed_none_taken(registry: Registry) -> None:
    def beat() -> None: ...

    handler = registry.add_handler(beat)
    assert handler.job().row.payload == "{}"
    assert handler.decode("{}") == {}
    with pytest.raises(PayloadError, match="unexpected"):
        handler.decode('{"a": 1}')


# ── one object as the payload ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("kind", "value", "text"),
    [
        (Size, Size(1), '{"width":1,"height":10}'),
        (Box, Box(Path("a")), '{"corner":"a","size":null}'),
        (Options, {"path": Path("a"), "width": 3}, '{"path":"a","width":3}'),
    ],
)
def test_a_single_structured_argument_is_the_payload(registry: Registry, kind: Any, value: Any, text: str) -> None:
    def handler(it: Any, *, ctx: Context) -> None: ...

    handler.__annotations__["it"] = kind
    registered = registry.add_handler(handler)
    assert registered.job(value).row.payload == text
    assert registered.job(it=value).row.payload == text
    assert registered.decode(text) == {"it": value}
    with pytest.raises(PayloadError) as caught:
        registered.decode(text.replace("}", ',"more":1}'))
    assert caught.value.path == "$.more"
    with pytest.raises(PayloadError, match=r"\$\.it: missing"):
        registered.job()


@pytest.mark.parametrize("other", ["it: Size = Size(1)", "it: Size, width: int = 1", "it: Size | None"])
def test_otherwise_it_is_an_argument_like_any(registry: Registry, other: str) -> None:
    namespace: dict[str, Any] = {"Size": Size}
    exec(f"def handler({other}): ...", namespace)  # noqa: S102  a table of signatures
    assert registry.add_handler(namespace["handler"]).job(Size(1)).row.payload == '{"it":{"width":1,"height":10}}'


def test_unknown_keys_of_a_typed_dict_are_refused_at_once(registry: Registry) -> None:
    def handler(it: Options) -> None: ...

    with pytest.raises(PayloadError, match=r"\$\.widht: unexpected"):
        registry.add_handler(handler).job({"path": Path("a"), "widht": 1})  # type: ignore[typeddict-unknown-key]  # the mistake itself


def test_a_tagged_struct_keeps_its_tag(registry: Registry) -> None:
    class Tagged(msgspec.Struct, tag="t"):
        x: int

    def handler(it: Any) -> None: ...

    handler.__annotations__["it"] = Tagged
    registered = registry.add_handler(handler)
    job = registered.job(Tagged(1))
    assert job.row.payload == '{"type":"t","x":1}'
    assert registered.decode(job.row.payload) == {"it": Tagged(1)}


# ── what is injected ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_follow_up_jobs_come_from_handlers_that_take_a_context_or_yield(registry: Registry) -> None:
    def model() -> Model:
        return Model()

    def plain(path: str, model: Model) -> None: ...

    async def alone(path: str) -> None: ...

    def asking(path: str, model: Model, ctx: Context) -> None: ...

    def yielding(path: str) -> Iterator[Job]:
        yield registry.handlers["alone"].job(path)

    registry.add_resource(model)
    found = {each.__name__: registry.add_handler(each).may_follow_up for each in (plain, alone, asking, yielding)}
    assert found == {"plain": False, "alone": False, "asking": True, "yielding": True}


def test_context_and_resources_are_no_part_of_the_payload(registry: Registry) -> None:
    def model() -> Model:
        return Model()

    def predict(ctx: Context, path: str, model: Model, *, width: int = 3) -> None: ...

    registry.add_resource(model)
    handler = registry.add_handler(predict)
    assert handler.injections == (Injection("ctx", None), Injection("model", "model"))
    assert handler.job("a").row.payload == '{"path":"a"}'
    assert handler.job("a", width=4).row.payload == '{"path":"a","width":4}'
    with pytest.raises(PayloadError, match=r"\$\.ctx: filled in when the job runs; leave it out"):
        handler.job("a", ctx=None)
    with pytest.raises(PayloadError, match=r"\$\.model: unexpected"):
        handler.decode('{"path": "a", "model": 1}')


def test_a_resource_may_be_registered_after_the_handler(registry: Registry) -> None:
    def predict(path: str, *, model: Model) -> None: ...

    handler = registry.add_handler(predict)
    with pytest.raises(HandlerError, match="no resource is named 'model'"):
        handler.job("a")
    with pytest.raises(HandlerError, match="no resource is named 'model'"):
        registry.check()

    def model() -> Model:
        return Model()

    registry.add_resource(model)
    registry.check()
    assert handler.job("a").row.payload == '{"path":"a"}'


def test_a_later_resource_takes_its_parameter_out_of_the_payload(registry: Registry) -> None:
    def greet(name: str, greeting: str) -> None: ...

    handler = registry.add_handler(greet)
    assert handler.injections == ()

    def greeting() -> str:
        return "hello"

    registry.add_resource(greeting)
    assert handler.injections == (Injection("greeting", "greeting"),)


@pytest.mark.parametrize(
    ("made", "wanted", "is_fine"),
    [
        (Model, Model, True),
        (BetterModel, Model, True),
        (Model, BetterModel, False),
        (Model, str, False),
        (Model, list[int], False),
        (Iterator[Model], Model, True),
        (Iterator[Model], str, False),
        (Any, Model, True),
        (Model, Any, True),
        ("Elsewhere", Model, True),
        (Model, "Elsewhere", True),
        (BetterModel, Predicts, True),
        (dict[str, int], dict[str, int], True),
        (dict[str, int], dict[str, str], False),
        (dict[str, int], dict, True),
        (dict[str, int], list[int], False),
        (Model, Model | None, True),
        (Model | None, Model, True),
        (Model, str | None, False),
        (Model, Annotated[Model, "yes"], True),
    ],
)
def test_annotations_must_agree(registry: Registry, made: Any, wanted: Any, is_fine: bool) -> None:
    def model() -> Any:
        return Model()

    def stream() -> Any:
        yield Model()

    def predict(path: str, *, model: Any) -> None: ...

    function = stream if getattr(made, "__origin__", None) is not None and "Iterator" in str(made) else model
    function.__annotations__["return"] = made
    predict.__annotations__["model"] = wanted
    registry.add_resource(function, "model")
    if is_fine:
        assert registry.add_handler(predict).injections == (Injection("model", "model"),)
    else:
        with pytest.raises(HandlerError, match=r"model is annotated .*; rename one of them"):
            registry.add_handler(predict)


def test_resources_take_resources(registry: Registry) -> None:
    def settings() -> dict[str, int]:
        return {}

    def model(settings: dict[str, int], size: int = 3) -> Iterator[Model]:
        yield Model()

    @contextlib.contextmanager
    def session(model: Model) -> Iterator[str]:
        yield "session"

    registry.add_resource(model, is_eager=True)
    registry.add_resource(settings)
    registry.add_resource(session)
    registry.check()
    found = registry.resources["model"]
    assert (found.injections, found.is_generator, found.is_eager) == ((("settings", "settings"),), True, True)
    assert next(found.function(settings={})).__class__ is Model
    opened = registry.resources["session"]
    assert opened.is_generator
    assert next(opened.function(model=Model())) == "session"
    assert not registry.resources["settings"].is_generator


def test_resources_in_a_circle_are_refused(registry: Registry) -> None:
    def a(b): ...  # type: ignore[no-untyped-def]  # names are all that counts
    def b(c): ...  # type: ignore[no-untyped-def]
    def c(a): ...  # type: ignore[no-untyped-def]

    for function in (a, b, c):
        registry.add_resource(function)
    with pytest.raises(HandlerError, match="needs itself: a -> b -> c -> a"):
        registry.check()


def test_resources_that_are_refused(registry: Registry) -> None:
    async def later() -> None: ...
    async def stream() -> AsyncIterator[int]:
        yield 1

    def needy(ctx: Context) -> None: ...
    def lost(nothing: int) -> None: ...
    def one() -> None: ...

    for function in (later, stream):
        with pytest.raises(HandlerError, match="is async"):
            registry.add_resource(function)
    with pytest.raises(HandlerError, match="name must be one that a parameter can have"):
        registry.add_resource(one, "a-b")
    registry.add_resource(one)
    with pytest.raises(HandlerError, match="'one': is there already"):
        registry.add_resource(one)
    registry.add_resource(needy)
    with pytest.raises(HandlerError, match="a resource outlives the job"):
        registry.check()
    del registry.resources["needy"]
    registry.add_resource(lost)
    with pytest.raises(HandlerError, match="no resource is named 'nothing'"):
        registry.check()


# ── what is refused at import ─────────────────────────────────────────────────────────────────────────────────────────


class Holder:
    def method(self) -> None: ...

    @staticmethod
    def static() -> None: ...


def positional(x: int, /) -> None: ...
def many(*xs: int) -> None: ...
def loose(**xs: int) -> None: ...
def generator() -> Iterator[int]:
    yield 1


async def async_generator() -> AsyncIterator[int]:
    yield 1


def two_objects(x: Size | Box) -> None: ...
def unnamed_context(ctx, x: int) -> None: ...  # type: ignore[no-untyped-def]
def maybe_context(ctx: Context | None, x: int) -> None: ...
def raw(x: msgspec.Raw) -> None: ...


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (positional, "positional-only"),
        (many, r"\*xs has no name for each value; take a list"),
        (loose, r"\*\*xs can't be checked; take a dict"),
        (generator, "is a generator"),
        (async_generator, "is a generator"),
        (lambda: None, "a lambda has no name"),
        (Holder, "must be a function"),
        (Holder().method, "must be a function"),
        (Holder.method, "defined in the class Holder"),
        (Holder.static, "defined in the class Holder"),
        (functools.partial(thumbnail, "a"), "must be a function"),
        (print, "must be a function"),
        (two_objects, "x: .*can't be decoded from JSON.*not supported"),
        (unnamed_context, "annotate it as tasuki_mp.Context"),
        (maybe_context, "exactly tasuki_mp.Context"),
        (raw, "raw JSON"),
    ],
)
def test_functions_that_can_be_no_handler(registry: Registry, function: Any, words: str) -> None:
    with pytest.raises(HandlerError, match=words):
        registry.add_handler(function)
    assert registry.handlers == {}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"name": ""}, "1 to 200 printable characters"),
        ({"name": "x" * 201}, "1 to 200 printable characters"),
        ({"name": "a b"}, "no space"),
        ({"name": "a\n"}, "printable"),
        ({"name": 3}, "printable"),
        ({"queue": "a b"}, "queue's name 'a b'"),
        ({"queue": "x" * 58}, "queue's name"),
        ({"queue": "a\n"}, "queue's name"),
        ({"queue": None}, "queue's name None"),
        ({"priority": 4}, "priority is 0"),
        ({"priority": True}, "priority is 0"),
        ({"max_attempts": 0}, "max_attempts is a whole number"),
        ({"max_attempts": 2**31}, "max_attempts is a whole number"),
        ({"max_crashes": 1.5}, "max_crashes is a whole number"),
        ({"backoff": 3}, "backoff is a Backoff or a function"),
        ({"retry_on": ValueError("x")}, "retry_on takes exception classes"),
        ({"fail_on": (ValueError, int)}, "fail_on takes exception classes, not <class 'int'>"),
        ({"fence": "maybe"}, "fence is 'wait' or 'kill'"),
    ],
)
def test_options_that_can_not_be(registry: Registry, options: dict[str, Any], words: str) -> None:
    with pytest.raises(HandlerError, match=words):
        registry.add_handler(thumbnail, **options)
    assert registry.handlers == {}


def test_a_name_used_twice_is_refused(registry: Registry) -> None:
    handler = registry.add_handler(thumbnail)
    with pytest.raises(HandlerError, match=r"'thumbnail': is there already \(.*test_handlers.py:\d+\)"):
        registry.add_handler(thumbnail)
    with pytest.raises(HandlerError, match="registered already"):
        registry.add_handler(handler, "again")
    assert registry.add_handler(thumbnail, "other").name == "other"


def test_a_lambda_or_an_inner_function_with_a_name_is_fine(registry: Registry) -> None:
    assert registry.add_handler(lambda: 1, "one").job().row.handler == "one"


# ── annotations that are texts ────────────────────────────────────────────────────────────────────────────────────────


def later_type(x: Later) -> None: ...  # type: ignore[name-defined]  # noqa: F821  defined by a test
def never_type(x: Elsewhere) -> None: ...
def injected_type(x: int, model: Elsewhere) -> None: ...


def test_a_type_may_be_defined_after_the_handler(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    handler = registry.add_handler(later_type)
    with pytest.raises(HandlerError, match=r"'Later' can't be resolved \(name 'Later' is not defined\)"):
        handler.job(1)
    monkeypatch.setitem(globals(), "Later", int)
    assert handler.job(1).row.payload == '{"x":1}'


def test_a_type_that_only_a_type_checker_sees_is_refused_with_a_hint(registry: Registry) -> None:
    registry.add_handler(never_type)
    with pytest.raises(HandlerError, match="import it at run time too, if only a type checker sees it"):
        registry.check()


def test_a_resource_is_injected_by_name_whatever_its_annotation_names(registry: Registry) -> None:
    def model() -> Elsewhere: ...

    registry.add_resource(model)
    assert registry.add_handler(injected_type).injections == (Injection("model", "model"),)


def test_the_context_is_known_where_only_a_type_checker_imports_it(registry: Registry) -> None:
    module = types.ModuleType("shop_of_the_type_checker")
    source = "from __future__ import annotations\ndef handler(x: int, ctx: Context) -> None: ...\n"
    exec(source, module.__dict__)  # noqa: S102  a module without the import
    assert registry.add_handler(module.handler).injections == (Injection("ctx", None),)


# ── calling, answering, describing ────────────────────────────────────────────────────────────────────────────────────


def test_a_handler_is_still_its_function(registry: Registry) -> None:
    async def fetch(x: int) -> int:
        """What it does."""
        return x

    handler = registry.add_handler(thumbnail)
    assert handler("a", 3) == "a 3 False"
    assert handler.function is thumbnail
    assert handler.kind == "plain"
    fetching = registry.add_handler(fetch)
    assert fetching.kind == "async"
    assert fetching.__doc__ == "What it does."
    assert repr(fetching) == "<handler 'fetch'>"


def test_decorated_functions_keep_their_signature(registry: Registry) -> None:
    def shouting(function: Callable[..., str]) -> Callable[..., str]:
        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> str:
            return function(*args, **kwargs).upper()

        return wrapper

    handler = registry.add_handler(shouting(thumbnail))
    assert handler.function(**handler.decode(handler.job("a").row.payload)) == "A 200 FALSE"


def test_jobs_and_the_supervisor_get_the_options(registry: Registry) -> None:
    handler = registry.add_handler(
        thumbnail,
        "thumb",
        queue="images",
        priority=0,
        max_attempts=7,
        max_crashes=2,
        backoff=Backoff(factor=2.0),
        fence="kill",
    )
    row = handler.job("a").row
    assert (row.handler, row.queue, row.priority, row.max_attempts) == ("thumb", "images", 0, 7)
    info = handler.info
    assert (info.name, info.queue, info.priority, info.max_attempts) == ("thumb", "images", 0, 7)
    assert (info.policy.max_crashes, info.policy.backoff, info.policy.fence) == (2, Backoff(factor=2.0), "kill")
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(info), type=HandlerInfo) == info


@pytest.mark.parametrize(
    ("options", "error", "answer"),
    [
        ({}, ValueError(), (True, None)),
        ({}, SystemExit(), (True, None)),
        ({"retry_on": OSError}, FileNotFoundError(), (True, None)),
        ({"retry_on": (OSError,)}, ValueError(), (False, None)),
        ({"fail_on": OSError}, FileNotFoundError(), (False, None)),
        ({"fail_on": (OSError,)}, ValueError(), (True, None)),
        ({"retry_on": OSError, "fail_on": FileNotFoundError}, FileNotFoundError(), (False, None)),
        ({"retry_on": OSError, "fail_on": FileNotFoundError}, ConnectionError(), (True, None)),
        ({"backoff": lambda attempt, error: attempt * 2}, ValueError(), (True, 6.0)),
        ({"backoff": lambda attempt, error: dt.timedelta(minutes=attempt)}, ValueError(), (True, 180.0)),
        ({"backoff": lambda attempt, error: 1, "fail_on": ValueError}, ValueError(), (False, None)),
    ],
)
def test_what_an_exception_means(
    registry: Registry, options: dict[str, Any], error: BaseException, answer: tuple[bool, float | None]
) -> None:
    assert registry.add_handler(thumbnail, **options).answer(error, 3) == answer


@pytest.mark.parametrize("wrong", [-1, float("nan"), 1e12, "soon"])
def test_a_backoff_that_returns_nonsense_is_an_error(registry: Registry, wrong: Any) -> None:
    handler = registry.add_handler(thumbnail, backoff=lambda attempt, error: wrong)
    with pytest.raises(ValueError, match=r"soon|thumbnail's backoff"):
        handler.answer(ValueError(), 1)


# ── load_app ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, str], str]]:
    """Writes modules; what they import is forgotten afterwards. Gives the folder."""
    before = set(sys.modules)
    monkeypatch.setattr(sys, "path", list(sys.path))

    def write(name: str, source: str) -> str:
        file = tmp_path.joinpath(*name.split(".")).with_suffix(".py")
        file.parent.mkdir(exist_ok=True)
        file.write_text(textwrap.dedent(source))
        return str(tmp_path)

    yield write
    for name in set(sys.modules) - before:
        del sys.modules[name]


def test_an_application_is_loaded_with_all_its_modules(shop: Callable[[str, str], str]) -> None:
    shop("shop_a.main", "from tasuki_mp import Tasuki\nclass Held: app = Tasuki(modules=['shop_a.images'])")
    folder = shop(
        "shop_a.images",
        """
        from shop_a.main import Held
        @Held.app.handler
        def thumbnail(path: str): ...
        """,
    )
    app = load_app("shop_a.main:Held.app", folder)
    assert list(app.registry.handlers) == ["thumbnail"]
    assert app.max_result == 1024 * 1024


@pytest.mark.parametrize(
    ("source", "app", "words"),
    [
        ("import nowhere", "shop_b:app", "import nowhere"),
        ("1 / 0", "shop_b:app", "ZeroDivisionError"),
        ("def :", "shop_b:app", "SyntaxError"),
        ("raise SystemExit(3)", "shop_b:app", "SystemExit: 3"),
        ("from tasuki_mp import Tasuki\napp = Tasuki(modules=['nowhere'])", "shop_b:app", "No module named 'nowhere'"),
        (
            "from tasuki_mp import Tasuki\napp = Tasuki()\n@app.handler\ndef h(x: 'Nope'): ...",
            "shop_b:app",
            "'Nope' can't be resolved",
        ),
        ("", "nowhere_b:app", "No module named 'nowhere_b'"),
    ],
)
def test_an_import_that_fails_shows_its_traceback_and_not_how_it_was_imported(
    shop: Callable[[str, str], str], source: str, app: str, words: str
) -> None:
    folder = shop("shop_b", source)
    with pytest.raises(AppImportError) as caught:
        load_app(app, folder)
    assert caught.value.app == app
    assert words in caught.value.traceback
    assert ("Traceback" in caught.value.traceback) == source.startswith(("import", "1", "raise"))
    assert "importlib" not in caught.value.traceback
    assert "tasuki_mp/" not in caught.value.traceback


@pytest.mark.parametrize(
    ("app", "words"),
    [
        ("shop_c", "write it as package.module:name"),
        ("shop_c:", "write it as"),
        (":app", "write it as"),
        ("shop_c:nope", "has no 'nope'"),
        ("shop_c:number", "is int, not a tasuki_mp.Tasuki application"),
    ],
)
def test_a_wrong_spelling_is_a_configuration_error(shop: Callable[[str, str], str], app: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        load_app(app, shop("shop_c", "number = 1"))
