"""What operators copy: systemd unit, Dockerfile and compose file say what the program needs to stop well."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from collections import defaultdict
from pathlib import Path

import pytest

from tasuki_mp.options import PARSERS

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
VARIABLES = {"TASUKI_DSN"} | {f"TASUKI_{option.replace('-', '_').upper()}" for option in PARSERS}


def seconds(span: str) -> float:
    number, unit = re.fullmatch(r"(\d+)(ms|s|min|)", span).groups()
    return float(number) * {"ms": 0.001, "s": 1, "": 1, "min": 60}[unit]


# ── systemd ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def unit_file() -> dict[str, list[str]]:
    """Key → values, over all sections: no key stands in two of them."""
    settings = defaultdict(list)
    for line in (DEPLOY / "tasuki-mp.service").read_text().splitlines():
        if "=" in line and not line.startswith("#"):
            key, _, value = line.partition("=")
            settings[key].append(value)
    return settings


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze here")
def test_systemd_finds_nothing_wrong_with_the_unit(tmp_path: Path) -> None:
    # It insists that the program exists, so the program becomes one that does.
    text = (DEPLOY / "tasuki-mp.service").read_text()
    assert "ExecStart=/opt/tasuki-mp/bin/tasuki-mp run" in text
    unit = tmp_path / "tasuki-mp.service"
    unit.write_text(text.replace("/opt/tasuki-mp/bin/tasuki-mp", shutil.which("true") or ""))
    done = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_unit_lets_running_jobs_finish_and_kills_nothing_but_the_supervisor_first() -> None:
    unit = unit_file()
    environment = dict(item.split("=", 1) for value in unit["Environment"] for item in shlex.split(value))
    assert unit["KillMode"] == ["mixed"]
    assert seconds(unit["TimeoutStopSec"][0]) > seconds(environment["TASUKI_GRACE"])
    assert unit["OOMPolicy"] == ["continue"]
    assert {name for name in environment if name.startswith("TASUKI_")} <= VARIABLES


def test_unit_shows_no_password_to_ps_and_systemctl() -> None:
    unit = unit_file()
    assert "DSN" not in " ".join(unit["Environment"] + unit["ExecStart"])
    assert unit["EnvironmentFile"]


# ── Docker ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def dockerfile() -> list[tuple[str, str]]:
    """Its instructions in order, continuation lines joined."""
    text = "\n".join(line for line in (DEPLOY / "Dockerfile").read_text().splitlines() if not line.startswith("#"))
    joined = re.sub(r"\\\n\s*", "", text)
    return [(name, rest.strip()) for name, _, rest in (line.partition(" ") for line in joined.splitlines() if line)]


def final_stage() -> dict[str, list[str]]:
    settings: dict[str, list[str]] = defaultdict(list)
    for name, value in dockerfile():
        if name == "FROM":
            settings.clear()
        settings[name].append(value)
    return settings


def test_image_runs_the_program_itself_and_not_as_root() -> None:
    stage = final_stage()
    assert json.loads(stage["ENTRYPOINT"][0]) == ["tasuki-mp"]  # a JSON array is the exec form: signals arrive
    assert json.loads(stage["CMD"][0]) == ["run"]
    assert stage["USER"] == ["tasuki-mp"]
    assert stage["STOPSIGNAL"] == ["SIGTERM"]
    environment = dict(item.split("=", 1) for value in stage["ENV"] for item in shlex.split(value))
    assert {name for name in environment if name.startswith("TASUKI_")} <= VARIABLES


def test_image_is_built_from_files_that_exist_and_are_sent() -> None:
    ignored = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
    copied = [
        source
        for name, value in dockerfile()
        if name == "COPY" and not value.startswith("--from")
        for source in value.split()[:-1]
    ]
    assert copied
    for source in copied:
        assert (ROOT / source).exists()
        assert f"!{source}" in ignored


# ── compose ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_compose_worker_waits_for_postgres_and_gets_time_to_stop() -> None:
    yaml = pytest.importorskip("yaml")
    services = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
    postgres, worker = services["postgres"], services["worker"]
    assert postgres["healthcheck"]["test"][:2] == ["CMD", "pg_isready"]
    assert worker["depends_on"] == {"postgres": {"condition": "service_healthy"}}
    assert worker["init"] is True
    environment = dict(item.split("=", 1) for value in final_stage()["ENV"] for item in shlex.split(value))
    assert seconds(worker["stop_grace_period"]) > seconds(environment["TASUKI_GRACE"])
    assert set(worker["environment"]) <= VARIABLES


def test_compose_names_files_that_exist() -> None:
    yaml = pytest.importorskip("yaml")
    worker = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]["worker"]
    context = (DEPLOY / worker["build"]["context"]).resolve()
    assert (context / worker["build"]["dockerfile"]).is_file()
    folder = (DEPLOY / worker["volumes"][0].split(":")[0]).resolve()
    module, _, name = worker["environment"]["TASUKI_APP"].partition(":")
    assert re.search(rf"^{name} = Tasuki\(", (folder / f"{module}.py").read_text(), re.MULTILINE)


def test_docker_itself_accepts_the_compose_file() -> None:
    has_compose = (
        shutil.which("docker") is not None
        and subprocess.run(["docker", "compose", "version"], capture_output=True, check=False).returncode == 0
    )
    if not has_compose:
        pytest.skip("no docker compose here")
    done = subprocess.run(
        ["docker", "compose", "--file", DEPLOY / "compose.yaml", "config", "--quiet"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
