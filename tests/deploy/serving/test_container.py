"""The GPU path is checked as far as it can be without a GPU: by reading it."""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from equipoise_deploy.ports import Ports
from equipoise_deploy.serving.command import serve_command
from equipoise_deploy.serving.container import container_command
from equipoise_deploy.serving.server import HARDENING
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from typer import Typer
from typer.testing import CliRunner

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

DEPLOY = Path(__file__).parents[3] / "deploy"
DOCKERFILES = ("Dockerfile", "gateway.Dockerfile")
WITHOUT = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {}:
            raise ImportError(name)
sys.meta_path.insert(0, Absent())
import equipoise_deploy.serving.command, model_signing.verifying
"""
"""Imports what `serve` needs where some packages are not installed."""

APP = Typer()
APP.command()(serve_command)


def test_container_is_confined_and_reachable_from_this_machine_only(tmp_path):
    """Parsed as the engine would: read-only, unprivileged, loopback, telemetry off, models read-only."""
    program, verb, *rest = container_command("docker", tmp_path, Ports(9001, 9000, 9002), "image:1")
    parser = argparse.ArgumentParser()
    for option in ("--gpus", "--user", "--tmpfs", "--cap-drop", "--security-opt", "--shm-size", "--volume"):
        parser.add_argument(option)
    for option in ("--publish", "--env"):
        parser.add_argument(option, action="append")
    for option in ("--rm", "--init", "--read-only"):
        parser.add_argument(option, action="store_true", dest=option.strip("-").replace("-", "_"))
    image = rest.index("image:1")
    options = parser.parse_args(rest[:image])
    assert (program, verb) == ("docker", "run")
    assert options.rm and options.init and options.read_only
    assert options.user == "1000:1000" and options.cap_drop == "ALL" and options.gpus == "all"
    assert options.publish == ["127.0.0.1:9001:8001", "127.0.0.1:9000:8000", "127.0.0.1:9002:8002"]
    assert "ORT_DISABLE_TELEMETRY=1" in options.env and "NVIDIA_TF32_OVERRIDE=0" in options.env
    assert options.volume == f"{tmp_path}:/models:ro"
    assert rest[image + 1] == "tritonserver" and set(HARDENING) < set(rest[image + 2 :])


@pytest.mark.parametrize("dockerfile", DOCKERFILES)
def test_dockerfile_is_clean(dockerfile):
    """hadolint finds nothing."""
    hadolint = Path(sys.prefix) / "bin" / "hadolint"
    result = subprocess.run([hadolint, DEPLOY / dockerfile], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("dockerfile", DOCKERFILES)
def test_image_is_unprivileged_pinnable_and_alive_by_asking(dockerfile):
    """Every base can be pinned by digest, the user is nobody's root, telemetry is off, and a health check asks."""
    text = (DEPLOY / dockerfile).read_text()
    bases = re.findall(r"^FROM (\S+)", text, re.MULTILINE)
    assert bases and all(re.search(r"\$\{\w+_DIGEST\}$", base) for base in bases)
    assert not re.search(r"^COPY .*--chmod=[^0-7]", text, re.MULTILINE), "older engines take octal modes only"
    last = text[text.rindex("\nFROM ") :]
    assert re.findall(r"^USER (.+)$", last, re.MULTILINE) == ["1000:1000"]
    assert "ORT_DISABLE_TELEMETRY=1" in last and "HEALTHCHECK" in last and "compileall" in text
    assert (DEPLOY / f"{dockerfile}.dockerignore").read_text().startswith("*\n"), "only what is named goes into it"


def test_image_starts_the_supervisor_as_its_command_line_is():
    """The Dockerfile's command is one that `equipoise serve` understands; Triton is where and as NVIDIA has it."""
    text = (DEPLOY / "Dockerfile").read_text().replace("\\\n", "")
    (command,) = re.findall(r"^CMD (\[.*\])$", text, re.MULTILINE)
    verb, *words = json.loads(command)
    help_text = CliRunner().invoke(APP, ["--help"], env={"COLUMNS": "200"}).output
    assert verb == "serve" and words[0] == "/models"
    for option in words[1:]:
        assert option.split("=")[0] in help_text
    environment = dict(re.findall(r"(EQUIPOISE_\w+)=\"?([^\"\s]*(?: --[^\"\s]*)*)", text))
    engine_variables = {"EQUIPOISE_TRITON_BINARY", "EQUIPOISE_TRITON_CONFIG", "EQUIPOISE_TRITON_OPTIONS"}
    assert set(environment) == engine_variables and environment["EQUIPOISE_TRITON_CONFIG"] == ""
    assert "--allow-client-shm=false" in environment["EQUIPOISE_TRITON_OPTIONS"]
    assert "NVIDIA_TF32_OVERRIDE=0" in text


def test_image_has_what_its_wheel_is_built_from():
    """Whatever pyproject.toml puts into the wheel is let in by .dockerignore."""
    allowed = [line[1:] for line in (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines() if line[:1] == "!"]
    wheel = tomllib.loads((DEPLOY.parent / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    for path in (*wheel["packages"], *wheel["force-include"], "LICENSE", "README.md", "deploy/locks/constraints.txt"):
        assert any(path == each or path.startswith(f"{each}/") for each in allowed), path


def test_image_has_every_package_that_serve_imports():
    """It installs a few packages by name and no extras."""
    (words,) = re.findall(r"--target /opt/equipoise (.+?) *&&", (DEPLOY / "Dockerfile").read_text().replace("\\\n", ""))
    wheel, *named = words.split()
    installed, waiting = set[str](), [Requirement("equipoise"), *map(Requirement, named)]
    while waiting:
        requirement = waiting.pop()
        extras = ("", *requirement.extras)
        name = canonicalize_name(requirement.name)
        installed.add(name)
        for line in metadata.requires(name) or ():
            inner = Requirement(line)
            wanted = inner.marker is None or any(inner.marker.evaluate({"extra": extra}) for extra in extras)
            if wanted and canonicalize_name(inner.name) not in installed:
                waiting.append(inner)
    absent = sorted(
        module
        for module, packages in metadata.packages_distributions().items()
        if not installed & {canonicalize_name(package) for package in packages}
    )
    assert wheel == "/wheel/*.whl" and "torch" in absent and "psutil" not in absent
    run = subprocess.run([sys.executable, "-c", WITHOUT.format(absent)], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
