"""The GPU path: the same repository in NVIDIA's image. Written from the documentation; never executed so far, because
no machine with a GPU and a container engine was available. Tests check the command line, not its effect.
"""

from __future__ import annotations

import shutil
from dataclasses import astuple
from pathlib import Path

from ..ports import LOOPBACK, Ports
from .device import NVIDIA_DEVICES
from .server import HARDENING

IMAGE = "nvcr.io/nvidia/tritonserver:26.07-py3"
_ENGINES = ("docker", "podman")


def find_container_engine() -> str | None:
    """The container engine to use, or None where there is none or no GPU."""
    return next(filter(None, map(shutil.which, _ENGINES)), None) if NVIDIA_DEVICES[0].exists() else None


def container_command(program: str, repository: Path, ports: Ports, image: str = IMAGE) -> list[str]:
    """`docker run …`: unprivileged, read-only, reachable from this machine only.

    Args:
        program: the container engine.
        ports: on this machine, every one given; inside, Triton uses its own defaults.
    """
    published = [
        f"--publish={LOOPBACK}:{outside}:{inside}"
        for outside, inside in zip(astuple(ports), astuple(Ports()), strict=True)
    ]
    return [
        program,
        "run",
        "--rm",
        "--init",
        "--gpus=all",
        "--user=1000:1000",
        "--read-only",
        "--tmpfs=/tmp",
        "--cap-drop=ALL",
        "--security-opt=no-new-privileges",
        "--shm-size=2g",  # the engine's default of 64 MB is less than two volumes need
        "--env=ORT_DISABLE_TELEMETRY=1",
        "--env=NVIDIA_TF32_OVERRIDE=0",
        *published,
        f"--volume={repository.resolve()}:/models:ro",
        image,
        "tritonserver",
        "--model-repository=/models",
        *HARDENING,
        "--allow-client-shm=false",
        "--exit-timeout-secs=30",
    ]
