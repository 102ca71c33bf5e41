"""What users install: the sdist, the wheel built from it, and the program in an environment of its own."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from pathlib import Path

import psycopg
import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an sdist of this checkout and the wheel that is built from that sdist."""
    folder = tmp_path_factory.mktemp("dist")
    _run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT)
    return folder


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    """The wheel."""
    (path,) = built.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of a fresh virtual environment that has the wheel, and borrows its dependencies from this one."""
    folder = tmp_path_factory.mktemp("environment") / "with a space"
    _run(sys.executable, "-m", "venv", "--without-pip", folder)
    python = folder / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", python]
    _run(*pip, "install", "--quiet", "--no-deps", "--no-index", wheel)
    site = _run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
    # A line in a .pth file adds a folder, but not what the .pth files in that one say: the editable install stays unseen.
    Path(site, "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "bin"


def _run(*command: str | Path, cwd: Path = Path("/"), **variables: str) -> str:
    """What a program prints; from a folder where the checkout can't be imported by chance."""
    # Without coverage's variables: nothing of this checkout runs here, and building would take twice as long.
    unwanted = ("PYTHONPATH", "COVERAGE")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(unwanted)} | variables
    done = subprocess.run(
        command, check=False, cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def _files(folder: str) -> set[str]:
    return {path.relative_to(ROOT).as_posix() for path in (ROOT / folder).rglob("*") if path.is_file()}


def test_the_wheel_holds_the_sql_and_the_marker_for_types(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    statements = {name for name in _files("sql") if name.endswith(".sql")}
    assert any(name.startswith("sql/migrations/0001_") for name in statements)
    assert {f"tasuki_mp/{name}" for name in statements} <= names
    assert "tasuki_mp/py.typed" in names
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    foreign = {name for name in names if not re.match(r"tasuki_mp(-[^/]+\.dist-info)?/", name)}
    assert not foreign
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "tasuki_mp").rglob("*.py")}
    assert modules <= names
    assert not [name for name in names if "__pycache__" in name]


def test_the_sdist_is_complete(built: Path) -> None:
    (path,) = built.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    assert {"LICENSE", "Makefile", "README.md", "pyproject.toml", "tests/conftest.py"} <= names
    assert {name for name in _files("sql") if name.endswith(".sql")} <= names


def test_the_installed_program_says_its_version(environment: Path, wheel: Path) -> None:
    version = wheel.name.split("-")[1]
    assert version in _run(environment / "tasuki-mp", "--version")
    assert version in _run(environment / "python", "-m", "tasuki_mp", "--version")
    module = _run(environment / "python", "-c", "import tasuki_mp; print(tasuki_mp.__file__)")
    assert Path(module).is_relative_to(environment.parent)


def test_the_installed_program_migrates(environment: Path, empty_dsn: str) -> None:
    _run(environment / "tasuki-mp", "migrate", TASUKI_DSN=empty_dsn)
    _run(environment / "tasuki-mp", "migrate", TASUKI_DSN=empty_dsn)
    with psycopg.connect(empty_dsn) as conn:
        assert conn.execute("SELECT count(*) FROM tasuki.job").fetchone() == (0,)


def test_every_import_is_a_declared_dependency() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    declared = {
        re.split(r"[^\w-]", requirement)[0].replace("-", "_")
        for requirement in [*project["dependencies"], *extras["embedded"], *extras["reload"]]
    }
    declared.add("pytest")  # which loads the plugin itself
    imported = set()
    for path in (ROOT / "tasuki_mp").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                imported.add(node.module.split(".")[0])
    assert imported - sys.stdlib_module_names - {"tasuki_mp"} <= declared
