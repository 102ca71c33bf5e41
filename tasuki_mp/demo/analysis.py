"""What the demo's jobs compute: size and cyclomatic complexity of Python source. Pure, but for reading the file."""

from __future__ import annotations

import ast
import heapq
import io
import tokenize
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

import msgspec

TOP: Final = 10
"""How many of its most complex functions a file's report names; enough for the same number over all files."""

_NO_CODE: Final = frozenset(
    {
        tokenize.ENCODING,
        tokenize.COMMENT,
        tokenize.NL,
        tokenize.NEWLINE,
        tokenize.INDENT,
        tokenize.DEDENT,
        tokenize.ENDMARKER,
    }
)


class Function(msgspec.Struct, frozen=True):
    """A function, method or nested function; `name` is qualified as in `Class.method` or `outer.inner`."""

    name: str
    line: int
    complexity: int


class FileReport(msgspec.Struct, frozen=True):
    """What one file holds. `tokens` are those that mean something: no comments, line ends or indentation."""

    lines: int
    tokens: int
    functions: int
    complexity: int
    """The sum over all of its functions."""
    most_complex: list[Function]
    """At most `TOP`, the most complex first."""


def analyse_file(path: Path) -> FileReport:
    """The report on the file at `path`. Raises SyntaxError when it is no Python, OSError when it can't be read."""
    return analyse(path.read_bytes(), str(path))


def analyse(source: bytes, name: str) -> FileReport:
    """The report on one file's bytes. Raises SyntaxError, and nothing else, for whatever is no Python source."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an invalid escape in somebody's file is not news here
            tree = ast.parse(source, name)
        tokens = _count_tokens(source)
    except SyntaxError:
        raise
    except (ValueError, tokenize.TokenError, RecursionError, MemoryError) as error:
        # NUL bytes (until 3.12), what only the tokenizer refuses, and nesting beyond the parser's stack.
        raise SyntaxError(f"{type(error).__name__}: {error}") from error
    functions = list(functions_of(tree))
    return FileReport(
        lines=len(source.splitlines()),
        tokens=tokens,
        functions=len(functions),
        complexity=sum(function.complexity for function in functions),
        most_complex=most_complex(functions),
    )


def most_complex(functions: Iterable[Function]) -> list[Function]:
    """The `TOP` most complex of them, the most complex first; among equals, the one that came first."""
    return heapq.nlargest(TOP, functions, key=lambda function: function.complexity)


def functions_of(tree: ast.Module) -> Iterator[Function]:
    """Every function in the module, outer ones before those inside them.

    Complexity as in T. J. McCabe, "A Complexity Measure", IEEE Transactions on Software Engineering SE-2 (4), 1976:
    one more than the number of predicates, each part of a compound predicate counted, as he does. Predicates are: if
    and elif, the conditional expression, for, while, each except, each `case` but one that always matches, each guard,
    assert, each `for` and `if` of a comprehension, and each further operand of and/or. A nested function has a
    complexity of its own; lambdas and class bodies count where they stand.
    """
    waiting: list[tuple[ast.AST, str]] = [(tree, "")]
    while waiting:
        scope, prefix = waiting.pop()
        inner: list[tuple[ast.AST, str]] = []
        predicates = _walk_scope(scope, prefix, inner)
        if isinstance(scope, ast.FunctionDef | ast.AsyncFunctionDef):
            yield Function(prefix.removesuffix("."), scope.lineno, predicates + 1)
        waiting.extend(reversed(inner))


def _walk_scope(scope: ast.AST, prefix: str, inner: list[tuple[ast.AST, str]]) -> int:
    """Count the predicates of one function or module; what has a scope of its own goes to `inner` instead.

    Without recursion: a chain of a thousand `elif` is a thousand levels deep.
    """
    predicates = 0
    stack = [(child, prefix) for child in _own_children(scope)]
    while stack:
        node, within = stack.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            inner.append((node, f"{within}{node.name}."))
            stack.extend((child, within) for child in _evaluated_outside(node))
            continue
        predicates += _predicates_at(node)
        if isinstance(node, ast.ClassDef):
            within = f"{within}{node.name}."  # its children stand in the class
        stack.extend((child, within) for child in reversed(list(ast.iter_child_nodes(node))))
    return predicates


def _own_children(scope: ast.AST) -> list[ast.AST]:
    """What runs when the scope runs, last first; a function's decorators and defaults run in the scope around it."""
    if isinstance(scope, ast.FunctionDef | ast.AsyncFunctionDef):
        return list(reversed(scope.body))
    return list(reversed(list(ast.iter_child_nodes(scope))))


def _evaluated_outside(function: ast.FunctionDef | ast.AsyncFunctionDef) -> list[ast.AST]:
    defaults = [default for default in function.args.kw_defaults if default is not None]
    return [*function.decorator_list, *function.args.defaults, *defaults]


def _predicates_at(node: ast.AST) -> int:
    """How many ways this node itself adds, its children left aside."""
    match node:
        case ast.If() | ast.IfExp() | ast.For() | ast.AsyncFor() | ast.While() | ast.ExceptHandler() | ast.Assert():
            return 1
        case ast.BoolOp(values=values):
            return len(values) - 1
        case ast.comprehension(ifs=ifs):
            return 1 + len(ifs)
        case ast.match_case(pattern=pattern, guard=guard):
            return (not _always_matches(pattern)) + (guard is not None)
        case _:
            return 0


def _always_matches(pattern: ast.pattern) -> bool:
    """Whether this is `_` or a bare name."""
    return isinstance(pattern, ast.MatchAs) and pattern.pattern is None


def _count_tokens(source: bytes) -> int:
    return sum(token.type not in _NO_CODE for token in tokenize.tokenize(io.BytesIO(source).readline))
