"""Podman with a storage of its own below build/containers: no image of the user's is seen, and none is replaced.

Stand-ins bear the names of real images (`nvcr.io/nvidia/tritonserver`), so they must not come into the storage that
other people's `podman run` looks into.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from ..support.steps import Absent, Wrong

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "build" / "containers"
NAMESPACE = f"equipoise-{hashlib.sha256(str(BUILD).encode()).hexdigest()[:8]}"
"""Of this checkout: two can run side by side. Short, since it is part of sockets' paths."""

NEEDED = ("podman", "runc", "mmdebstrap", "iptables", "catatonit", "ip", "nsenter")
"""Programs; deploy/system-packages.sh installs them, with `netavark` and `aardvark-dns` for the networks."""

SETTINGS = """\
[containers]
default_ulimits = ["nofile=20000:20000", "nproc=10000:10000"]
log_driver = "k8s-file"
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
compose_warning_logs = false
[network]
network_backend = "netavark"
network_config_dir = "{folder}/networks"
"""
STORAGE = """\
[storage]
driver = "overlay"
graphroot = "{folder}/storage"
runroot = "/run/{name}"
"""


def missing() -> str:
    """Why no container can be run here; empty where one can."""
    if os.geteuid() != 0:
        return "containers are run by root: call it as root"
    absent = [name for name in NEEDED if not shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")]
    return f"not installed: {', '.join(absent)}; run deploy/system-packages.sh as root" if absent else ""


@cache
def environment() -> Mapping[str, str]:
    """For every process that calls podman. Raises Absent."""
    if why := missing():
        raise Absent(why)
    (BUILD / "networks").mkdir(parents=True, exist_ok=True)
    for file, text in (("containers.conf", SETTINGS), ("storage.conf", STORAGE)):
        (BUILD / file).write_text(text.format(folder=BUILD, name=NAMESPACE), encoding="utf-8")
    return {
        **os.environ,
        "CONTAINERS_CONF": str(BUILD / "containers.conf"),
        "CONTAINERS_STORAGE_CONF": str(BUILD / "storage.conf"),
        "BUILDAH_FORMAT": "docker",  # health checks
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}:/usr/sbin:/sbin",
    }


def run(words: Sequence[str | Path], **options: Any) -> subprocess.CompletedProcess[str]:
    """Any command in podman's environment, its output kept; the exit code is the caller's to judge."""
    words = [str(word) for word in words]
    env = {**environment(), **options.pop("env", {})}
    return subprocess.run(words, capture_output=True, text=True, cwd=options.pop("cwd", ROOT), env=env, **options)


def must(words: Sequence[str | Path], **options: Any) -> str:
    """Its standard output. Raises Wrong with the end of its output where the command fails."""
    done = run(words, **options)
    if done.returncode:
        shown = " ".join(str(word) for word in words)[:300]
        raise Wrong(f"`{shown}` ended with {done.returncode}: {(done.stdout + done.stderr)[-1500:]}")
    return done.stdout


def podman(*words: str | Path, **options: Any) -> str:
    """`must` of a podman command."""
    return must(["podman", *words], **options)


def inspect(container: str) -> dict[str, Any]:
    """What podman knows of a container."""
    (found,) = json.loads(podman("container", "inspect", container))
    return dict(found)


def logs(container: str) -> str:
    """All that it wrote."""
    done = run(["podman", "logs", container])
    return done.stdout + done.stderr


def has_image(name: str, label: str = "") -> bool:
    """Whether the image is in the storage, made from the recipe with this digest."""
    done = run(["podman", "image", "inspect", "--format", '{{index .Labels "equipoise.recipe"}}', name])
    return done.returncode == 0 and (not label or done.stdout.strip() == label)


def wait(condition: Callable[[], Any], what: str, seconds: float = 60.0) -> Any:
    """The condition's value as soon as it is true. Raises Wrong."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        if time.monotonic() > end:
            raise Wrong(f"not within {seconds:g} s: {what}")
        time.sleep(0.1)
    return found


def namespace() -> Path:
    """A network namespace for containers that publish ports: nobody's are taken, nothing outside is reached."""
    path = Path("/run/netns") / NAMESPACE
    if not path.exists():
        must(["ip", "netns", "add", NAMESPACE])
        must(["ip", "-n", NAMESPACE, "link", "set", "lo", "up"])
    return path


def enter_namespace() -> None:
    """This process, and what it starts from now on, is in there; its file systems stay as they are."""
    with namespace().open() as file:
        if ctypes.CDLL(None, use_errno=True).setns(file.fileno(), 0) != 0:
            raise Absent(f"a network namespace cannot be entered: {os.strerror(ctypes.get_errno())}")


def clean() -> None:
    """No container, network, volume or namespace is left; images stay."""
    for words in (["pod", "rm", "--all", "--force"], ["rm", "--all", "--force", "--time", "0"]):
        run(["nsenter", f"--net={namespace()}", "podman", *words])
    for kind in ("network", "volume"):
        run(["podman", kind, "prune", "--force"])
    run(["ip", "netns", "del", NAMESPACE])
