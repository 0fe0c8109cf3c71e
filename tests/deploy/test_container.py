"""The GPU path is checked as far as it can be without a GPU: by reading it."""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path

import yaml
from equipoise_deploy.container import container_command
from equipoise_deploy.ports import Ports
from equipoise_deploy.server import HARDENING

DEPLOY = Path(__file__).parents[2] / "deploy"


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


def test_dockerfile_is_clean():
    """hadolint finds nothing."""
    hadolint = Path(sys.prefix) / "bin" / "hadolint"
    result = subprocess.run([hadolint, DEPLOY / "Dockerfile"], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


def test_image_starts_triton_as_serve_does():
    """The Dockerfile's command repeats the options in JSON: it must not fall behind."""
    text = (DEPLOY / "Dockerfile").read_text().replace("\\\n", "")
    (command,) = re.findall(r"^CMD (\[.*\])$", text, re.MULTILINE)
    assert set(HARDENING) < set(json.loads(command))
    for setting in ("ORT_DISABLE_TELEMETRY=1", "NVIDIA_TF32_OVERRIDE=0", "USER 1000:1000"):
        assert setting in text


def test_compose_file_binds_loopback_and_confines():
    """Every port on 127.0.0.1; read-only, no capabilities, room in shared memory, a GPU."""
    service = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]["triton"]
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    assert service["read_only"] and service["cap_drop"] == ["ALL"] and service["shm_size"] == "2gb"
    (device,) = service["deploy"]["resources"]["reservations"]["devices"]
    assert device["capabilities"] == ["gpu"]
