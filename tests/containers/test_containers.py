"""A part of `make containers`, and its parts that need no engine."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from . import engine
from .bases import ROOTS, Base, bases
from .installed import CHAPTERS
from .pages import INSTALL, OPERATIONS, bash, commands, console
from .run import BESIDE, IMAGES, STEPS, TOTAL

ROOT = Path(__file__).parents[2]


def test_every_step_is_a_function_and_images_come_first():
    for step in STEPS.values():
        module, name = step.function.split(":")
        assert callable(getattr(importlib.import_module(module), name)) and step.seconds <= TOTAL
    assert (*IMAGES, *BESIDE) == tuple(name for name in STEPS if name in (*IMAGES, *BESIDE))
    assert list(STEPS)[: len(IMAGES)] == list(IMAGES)


def test_where_no_container_can_be_run_it_says_why(monkeypatch):
    """Nobody but root, and nothing without its programs."""
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert "root" in engine.missing()
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(engine, "NEEDED", ("podman", "no-such-engine"))
    assert "no-such-engine" in engine.missing() and "system-packages.sh" in engine.missing()


def test_a_stand_in_is_made_anew_when_anything_in_it_changes(tmp_path):
    file = tmp_path / "model.py"
    file.write_text("one")
    base = Base("python", "RUN true\n", {"model.py": file})
    before = base.digest
    assert base.digest == before
    file.write_text("two")
    assert len({before, base.digest, Base("services", base.recipe, base.files).digest}) == 3


def test_every_image_that_our_files_name_has_a_stand_in_or_a_reason():
    """Under the very name that a Dockerfile or the compose file gives it."""
    without = {"grafana/grafana-oss:11.6.0", "otel/opentelemetry-collector:0.115.1"}  # no package of Debian's
    services = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text())["services"]
    images = {own["image"].partition("$")[0] for own in services.values() if "build" not in own}
    images |= {"python:3.11-slim", "nvcr.io/nvidia/tritonserver:26.07-py3"}  # the Dockerfiles' defaults
    made = {name.removeprefix("docker.io/").removeprefix("library/") for name in bases()}
    assert made == images - without


@pytest.mark.slow
@pytest.mark.root
@pytest.mark.timeout(700)
@pytest.mark.skipif(bool(engine.missing()), reason=engine.missing() or "an engine is there")
def test_reverse_proxy_and_monitoring_in_containers(tmp_path):
    """The part of `make containers` that is made of Debian's packages alone; a machine too slow proves nothing."""
    command = [sys.executable, "-m", "tests.containers.run", "--into", str(tmp_path), "--seconds", "600"]
    done = subprocess.run([*command, "--only", "front"], cwd=ROOT, capture_output=True, text=True)
    entry = json.loads((tmp_path / "containers.json").read_text())["steps"]["front"]
    if entry["ok"] is None or entry["words"].startswith("stopped after"):
        pytest.skip(entry["words"])
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


def test_the_pages_commands_can_be_followed():
    """INSTALL.md's way on the server has at most ten commands, of which the first installs what it needs.

    The machine that it is tried on has these packages, and OPERATIONS.md's chapters have commands.
    """
    install = commands(console(INSTALL, "Installing").partition("\ncd ")[0])
    on_the_server = commands(bash(INSTALL, "On the server").partition('-c "\nfrom PIL')[0])[:-1]
    assert len(install) == 1 and len(install + on_the_server) <= 10, on_the_server
    assert on_the_server[-1].split()[1] == "haproxy"
    assert set(install[0].split()[2:]) <= set(ROOTS["machine"])
    for chapter in CHAPTERS:
        assert commands(console(OPERATIONS, chapter)), chapter
