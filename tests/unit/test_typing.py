"""What users write type-checks, and a handler called wrongly does not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SAMPLES = Path(__file__).parent.parent / "typing" / "samples.py"


def mypy(*arguments: str, cwd: Path) -> str:
    command = [
        sys.executable,
        "-m",
        "mypy",
        "--strict",
        "--config-file=",
        "--cache-dir",
        str(cwd / "cache"),
        *arguments,
    ]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd).stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("typing")


def test_the_samples_and_the_mistakes(folder: Path) -> None:
    pytest.importorskip("mypy")
    mistakes = folder / "mistakes.py"
    mistakes.write_text(
        "from tasuki_mp import Tasuki\n"
        "app = Tasuki()\n"
        "@app.handler(queue='q')\n"
        "def one(x: int) -> int: return x\n"
        "one('a')\n"
        "app.enqueue(one(1))\n"
        "@app.handler(qeue='q')\n"
        "def two(x: int) -> int: return x\n"
    )
    lines = mypy(str(SAMPLES), str(mistakes), cwd=folder).splitlines()
    assert not [line for line in lines if line.startswith(str(SAMPLES))]
    wrong = {int(line.split(":")[1]) for line in lines if "mistakes.py" in line and ": error:" in line}
    assert wrong == {5, 6, 7}, lines
