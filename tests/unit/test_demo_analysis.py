"""The demo's analysis: what counts as a predicate, what a scope is, and that nothing but SyntaxError comes out."""

from __future__ import annotations

import sysconfig
from pathlib import Path

import pytest

from tasuki_mp.demo.analysis import TOP, Function, analyse, analyse_file, most_complex


def complexities(source: str) -> dict[str, int]:
    return {function.name: function.complexity for function in analyse(source.encode(), "sample.py").most_complex}


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("pass", 1),
        ("if a: pass", 2),
        ("if a: pass\n else: pass", 2),
        ("if a: pass\n elif b: pass\n else: pass", 3),
        ("if a and b: pass", 3),
        ("if a and b and c or d: pass", 5),
        ("return a if b else c", 2),
        ("for a in b: pass\n else: pass", 2),
        ("while a: pass", 2),
        ("try: pass\n except A: pass\n except B: pass\n else: pass\n finally: pass", 3),
        ("with a: pass", 1),
        ("assert a", 2),
        ("return [a for a in b]", 2),
        ("return {a for a in b if a if b for c in a}", 5),
        ("return lambda: a or b", 2),
        ("match a:\n  case 1: pass\n  case 2 if b: pass\n  case _: pass", 4),
        ("match a:\n  case [1, _] | {'x': 2}: pass\n  case other: pass", 2),
        ("if a: pass\n def g():\n  if b: pass", 2),
        ("def g(x=a or b): pass", 2),
        ("@(a or b)\n def g(): pass", 2),
        ("class C:\n  x = a or b", 2),
    ],
)
def test_each_predicate_adds_one_way(body: str, expected: int) -> None:
    assert complexities(f"def f():\n {body}\n")["f"] == expected


def test_names_are_qualified_and_each_scope_counts_for_itself() -> None:
    source = """
if module_level or other: pass
class Outer:
    def method(self):
        if a: pass
        def inner():
            for b in c: pass
            while d: pass
        class Local:
            async def deep(self):
                async for x in y: pass
    class Nested:
        def method(self): pass
"""
    assert complexities(source) == {
        "Outer.method": 2,
        "Outer.method.inner": 3,
        "Outer.method.Local.deep": 2,
        "Outer.Nested.method": 1,
    }


def test_report_counts_lines_and_tokens_that_mean_something() -> None:
    report = analyse(b"# comment\n\ndef f(x):\n    return x + 1  # more\n", "sample.py")
    assert (report.lines, report.tokens, report.functions, report.complexity) == (4, 10, 1, 1)
    assert report.most_complex == [Function("f", 3, 1)]


def test_empty_file_is_a_report_too() -> None:
    report = analyse(b"", "sample.py")
    assert (report.lines, report.tokens, report.functions, report.most_complex) == (0, 0, 0, [])


def test_only_the_most_complex_are_named_and_all_are_counted() -> None:
    source = "".join(f"def f{n}():\n" + " if a: pass\n" * n + " pass\n" for n in range(25))
    report = analyse(source.encode(), "sample.py")
    assert [function.complexity for function in report.most_complex] == list(range(25, 25 - TOP, -1))
    assert (report.functions, report.complexity) == (25, sum(range(1, 26)))


def test_among_equals_the_first_comes_first() -> None:
    functions = [Function("a", 1, 2), Function("b", 2, 3), Function("c", 3, 2)]
    assert [function.name for function in most_complex(functions)] == ["b", "a", "c"]


@pytest.mark.parametrize(
    "source",
    [
        b"def f(:\n",
        b"print 'two'\n",
        b"# coding: uft-8\n",
        b"\xef\xbb\xbf# coding: latin-1\n",
        b'print("b\xf6se")\n',
        b"a = '\x00'\n",
        b"\x00",
        b"(" * 100_000,
        b"x = " + b"-" * 1_000_000 + b"1\n",
        b"if a:\n\tpass\n        pass\n",
        b"'''never closed\n",
        bytes(range(256)),
    ],
    ids=lambda source: repr(source[:20]),
)
def test_whatever_is_no_python_is_a_syntax_error(source: bytes) -> None:
    with pytest.raises(SyntaxError):
        analyse(source, "sample.py")


def test_a_thousand_elifs_are_no_recursion() -> None:
    source = "def f():\n if a: pass\n" + " elif a: pass\n" * 900
    assert complexities(source)["f"] == 902


def test_real_modules_with_known_shapes() -> None:
    report = analyse_file(Path(sysconfig.get_path("stdlib")) / "bisect.py")
    assert [(function.name, function.complexity) for function in report.most_complex] == [
        ("bisect_right", 8),
        ("bisect_left", 8),
        ("insort_right", 2),
        ("insort_left", 2),
    ]
