"""What a function's signature says: which parameters are injected, which are the payload, how JSON becomes arguments.

The payload is a JSON object. Its keys are the names of the parameters that are not injected; with one exception: where
that is exactly one parameter, without a default, whose type is a msgspec.Struct, a dataclass or a TypedDict, the
payload is that object itself and its keys are the type's own fields.
"""

from __future__ import annotations

import datetime as dt
import decimal
import inspect
import typing
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from inspect import Parameter
from pathlib import PurePath
from types import SimpleNamespace, UnionType
from typing import Any, Final, Literal, NamedTuple

import msgspec
from msgspec import inspect as described

from tasuki_mp import payload
from tasuki_mp.errors import HandlerError, PayloadError
from tasuki_mp.job import Job

_CONTEXT: Final = ("tasuki_mp.child.context", "Context")
"""The class of the running job's context, by name: it lives in a layer above this one."""

_STRICT: Final = (
    bytes,
    bytearray,
    dt.datetime,
    dt.date,
    dt.time,
    dt.timedelta,
    decimal.Decimal,
    uuid.UUID,
)
"""Types that must be given as such when a job is built; their JSON spelling is for payloads that come as JSON."""
_SPELT: Final = frozenset(
    (
        *(described.BytesType, described.ByteArrayType, described.DecimalType, described.UUIDType),
        *(described.DateTimeType, described.DateType, described.TimeType, described.TimeDeltaType),
    )
)
"""The same types, as msgspec describes them."""
_PLAIN: Final = frozenset((str, int, bool, float, type(None)))
"""Types of values that JSON has itself; their subclasses are none of them."""


class UnsettledError(HandlerError):
    """What may still be put right by something that is defined later: a name, or a resource."""


class Injection(NamedTuple):
    """A parameter that is filled in when the function is called: with a resource, or with the context (None)."""

    parameter: str
    resource: str | None


class Unresolved(NamedTuple):
    """An annotation that names something which can't be found where the function was defined."""

    text: str
    reason: str


class _Context:
    """Stands for the context's class where only a type checker sees its name."""


Kind = Literal["plain", "async", "generator", "async generator"]


def kind_of(function: Callable[..., Any]) -> Kind:
    """How a function is run to its end."""
    inner = inspect.unwrap(function)
    if inspect.isasyncgenfunction(inner):
        return "async generator"
    if inspect.isgeneratorfunction(inner):
        return "generator"
    return "async" if inspect.iscoroutinefunction(function) else "plain"


def yielded_by(function: Callable[..., Any]) -> Any:
    """The type that a generator function is annotated to yield, `Job` if it does not say; None for other functions."""
    if kind_of(function) not in {"generator", "async generator"}:
        return None
    kind = resolve(function, getattr(function, "__annotations__", {}).get("return", Parameter.empty))
    made = next(iter(typing.get_args(kind)), Any)
    return Job if made is Any else made


def parameters(function: Callable[..., Any], what: str) -> list[Parameter]:
    """The function's parameters. Raises HandlerError for one that can't be filled in by its name."""
    found = list(inspect.signature(function).parameters.values())
    for parameter in found:
        match parameter.kind:
            case Parameter.VAR_POSITIONAL:
                raise HandlerError(f"{what}: *{parameter.name} has no name for each value; take a list instead")
            case Parameter.VAR_KEYWORD:
                raise HandlerError(f"{what}: **{parameter.name} can't be checked; take a dict instead")
            case Parameter.POSITIONAL_ONLY:
                raise HandlerError(f"{what}: {parameter.name} is positional-only, and arguments are passed by name")
            case _:
                pass
    return found


def resolve(function: Callable[..., Any], annotation: Any) -> Any:
    """An annotation as a type: Any where there is none, Unresolved where it names what can't be found."""
    if annotation is Parameter.empty:
        return Any
    holder = SimpleNamespace(__annotations__={"it": annotation})
    names = getattr(inspect.unwrap(function), "__globals__", {})
    try:
        try:
            hints = typing.get_type_hints(holder, names, include_extras=True)
        except NameError:
            # `Context` is often imported for the type checker alone. A name of the module's own comes first.
            hints = typing.get_type_hints(holder, names, {_CONTEXT[1]: _Context}, include_extras=True)
    except (NameError, AttributeError, TypeError, SyntaxError) as error:
        return Unresolved(str(annotation), str(error))
    return hints["it"]


def is_context(kind: Any) -> bool:
    """Whether a type is that of the running job's context."""
    return kind is _Context or (isinstance(kind, type) and (kind.__module__, kind.__qualname__) == _CONTEXT)


def made_by(function: Callable[..., Any]) -> Any:
    """The type that a resource's function makes, by its annotation: what it returns, or for a generator yields."""
    inner = inspect.unwrap(function)
    kind = resolve(function, getattr(inner, "__annotations__", {}).get("return", Parameter.empty))
    if inspect.isgeneratorfunction(inner) and not isinstance(kind, Unresolved):
        return next(iter(typing.get_args(kind)), Any)
    return kind


def agree(wanted: Any, made: Any) -> bool:
    """Whether what a resource makes may stand where an annotation wants something, as far as one can tell."""
    wanted, made = _without_notes(wanted), _without_notes(made)
    if isinstance(wanted, Unresolved) or isinstance(made, Unresolved) or wanted == made or Any in (wanted, made):
        return True
    if typing.get_origin(wanted) in _UNIONS:
        return any(agree(each, made) for each in typing.get_args(wanted))
    if typing.get_origin(made) in _UNIONS:
        return any(agree(wanted, each) for each in typing.get_args(made))
    base, origin = typing.get_origin(wanted) or wanted, typing.get_origin(made) or made
    if not (isinstance(base, type) and isinstance(origin, type)):
        return True
    if base is origin and typing.get_args(wanted) and typing.get_args(made):
        return False
    try:
        return issubclass(origin, base)
    except TypeError:  # a Protocol that is not for run time
        return True


def _without_notes(kind: Any) -> Any:
    return typing.get_args(kind)[0] if typing.get_origin(kind) is typing.Annotated else kind


_UNIONS: Final = (typing.Union, UnionType)


class Plan:
    """How one function is called with a payload.

    Raises HandlerError for parameters that no payload can fill, UnsettledError where a later definition may help.
    """

    def __init__(
        self, name: str, fillable: Sequence[Parameter], kinds: Mapping[str, Any], injected: Collection[str]
    ) -> None:
        self._handler = name
        self._injected = injected
        self._names = tuple(parameter.name for parameter in fillable)
        self._name_set = frozenset(self._names)
        self._positional = tuple(each.name for each in fillable if each.kind is Parameter.POSITIONAL_OR_KEYWORD)
        self._has_defaults = any(each.default is not Parameter.empty for each in fillable)
        self._has_spellings = False
        """Whether a text could pass for a value of another type once it is JSON."""
        self._whole: str | None = None
        self._fields: frozenset[str] | None = None
        for parameter in self._names:
            self._check(parameter, kinds[parameter])
        if len(fillable) == 1 and not self._has_defaults:
            kind = kinds[self._names[0]]
            match info := described.type_info(kind):
                case described.StructType(array_like=False) | described.DataclassType() | described.TypedDictType():
                    self._whole, self._kind = self._names[0], kind
                    self._has_spellings = True
                    self._fields = frozenset(field.encode_name for field in info.fields)
                    if isinstance(info, described.StructType) and info.cls.__struct_config__.tag_field:
                        self._fields |= {info.cls.__struct_config__.tag_field}
                case _:
                    pass
        if self._whole is None:
            fields = [
                (each.name, kinds[each.name])
                if each.default is Parameter.empty
                else (each.name, kinds[each.name], msgspec.UNSET)
                for each in fillable
            ]
            self._kind = msgspec.defstruct(name, fields, kw_only=True, forbid_unknown_fields=True)
        self._decode: Callable[[str | bytes], Any] = msgspec.json.Decoder(self._kind, dec_hook=payload.dec_hook).decode
        self._keys: Callable[[str | bytes], dict[str, Any]] = _keys_decoder.decode

    def encode(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], *, limit: int) -> str:
        """The payload of a call, as compact JSON text. Raises PayloadError for what does not fit the signature."""
        arguments: Mapping[str, Any]
        if not args and self._name_set.issuperset(kwargs) and self._whole is None:
            arguments = kwargs
        else:
            arguments = self._bind(args, kwargs)
        value = arguments[self._whole] if self._whole else arguments
        try:
            # The values themselves are checked first, for a datetime would pass for a string once it is JSON; then
            # what their JSON turns into, which is what the handler will get. Some values are the same as JSON.
            if self._has_spellings or not _PLAIN.issuperset(map(type, arguments.values())):
                msgspec.convert(value, self._kind, builtin_types=_STRICT, dec_hook=payload.dec_hook)
            text = payload.encode(value, limit=limit)
        except payload.FlawError as flaw:
            raise PayloadError(self._handler, flaw.path, flaw.reason) from flaw
        except (msgspec.MsgspecError, ValueError, TypeError, OverflowError, RecursionError) as error:
            found = payload.find_flaw(value) if isinstance(error, RecursionError | OverflowError) else None
            path, reason = (found.path, found.reason) if found else payload.place(error)
            raise PayloadError(self._handler, path, reason) from error
        self.require(text)
        return text.decode()

    @property
    def kind(self) -> Any:
        """The type that a payload becomes: a struct, a dataclass or a TypedDict. A field UNSET has its default."""
        return self._kind

    def require(self, text: str | bytes) -> None:
        """Check that `decode` takes this payload. Raises PayloadError."""
        if self._fields is not None:
            self.decode(text)
            return
        try:
            self._decode(text)
        except (msgspec.MsgspecError, ValueError, TypeError, RecursionError) as error:
            path, reason = payload.place(error)
            raise PayloadError(self._handler, path, reason) from error

    def decode(self, text: str | bytes) -> dict[str, Any]:
        """The arguments that a payload gives, by name. Those left out are left to the function's defaults."""
        try:
            decoded = self._decode(text)
            if self._fields is not None:
                unexpected = self._keys(text).keys() - self._fields
                if unexpected:
                    raise PayloadError(self._handler, f"${payload.step(min(unexpected))}", self._unexpected())
        except (msgspec.MsgspecError, ValueError, TypeError, RecursionError) as error:
            path, reason = payload.place(error)
            raise PayloadError(self._handler, path, reason) from error
        if self._whole is not None:
            return {self._whole: decoded}
        arguments = msgspec.structs.asdict(decoded)
        if self._has_defaults:
            return {name: value for name, value in arguments.items() if value is not msgspec.UNSET}
        return arguments

    def _bind(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        if len(args) > len(self._positional):
            reason = f"{len(args)} positional arguments are given, and the payload has {len(self._positional)}"
            raise PayloadError(self._handler, "$", reason)
        arguments = dict(zip(self._positional, args, strict=False))
        for name, value in kwargs.items():
            if name in arguments:
                raise PayloadError(self._handler, f"${payload.step(name)}", "given twice, by position and by name")
            if name not in self._names:
                reason = "filled in when the job runs; leave it out" if name in self._injected else self._unexpected()
                raise PayloadError(self._handler, f"${payload.step(name)}", reason)
            arguments[name] = value
        if self._whole and not arguments:
            raise PayloadError(self._handler, f"${payload.step(self._whole)}", "missing")
        return arguments

    def _unexpected(self) -> str:
        names = sorted(self._fields) if self._fields is not None else self._names
        return f"unexpected; the payload has {', '.join(names) or 'no arguments'}"

    def _check(self, parameter: str, kind: Any) -> None:
        what = f"handler {self._handler!r}: argument {parameter}"
        if isinstance(kind, Unresolved):
            hint = "import it at run time too, if only a type checker sees it"
            raise UnsettledError(f"{what}: its annotation {kind.text!r} can't be resolved ({kind.reason}); {hint}")
        if parameter == "ctx" and kind is Any:
            raise HandlerError(f"{what}: annotate it as tasuki_mp.Context, or give it another name")
        try:
            nodes = list(_nodes(described.type_info(kind)))
            msgspec.json.Decoder(kind, dec_hook=payload.dec_hook)
        except NameError as error:
            raise UnsettledError(f"{what}: {kind!r} names something that can't be found: {error}") from error
        except Exception as error:
            raise HandlerError(f"{what}: {kind!r} can't be decoded from JSON: {error}") from error
        for node in nodes:
            match node:
                case described.CustomType(cls) if is_context(cls):
                    raise HandlerError(f"{what}: annotate the context as exactly tasuki_mp.Context, not {kind!r}")
                case described.CustomType(cls) if cls is not object and not issubclass(cls, PurePath):
                    raise UnsettledError(
                        f"{what}: no JSON becomes a {cls.__module__}.{cls.__qualname__}, and no resource is named "
                        f"{parameter!r}; make it a dataclass or a msgspec.Struct, or declare an @app.resource"
                    )
                case described.RawType() | described.ExtType():
                    raise HandlerError(f"{what}: raw JSON would go unchecked; take Any or a type")
                case described.Type() if type(node) in _SPELT:
                    self._has_spellings = True
                case _:
                    pass


_keys_decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])


def _nodes(root: described.Type) -> Iterator[described.Type]:
    """A type and all types within it, each once; types may contain themselves."""
    waiting: list[Any] = [root]
    seen: set[int] = set()
    while waiting:
        node = waiting.pop()
        if isinstance(node, tuple):
            waiting.extend(node)
        elif isinstance(node, described.Type | described.Field) and id(node) not in seen:
            seen.add(id(node))
            if isinstance(node, described.Type):
                yield node
            waiting.extend(getattr(node, name) for name in node.__struct_fields__)
