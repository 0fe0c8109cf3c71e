"""A hospital of one machine: deploy/compose.yaml by podman-compose, with the profiles cpu, gateway and trial."""

from __future__ import annotations

import json
import os
import shutil
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from equipoise_client.transport import Tls
from equipoise_deploy.certs import make_certificates

from ..support.steps import Absent
from .engine import BUILD, ROOT, enter_namespace, must, podman, run, wait
from .images import require_images

COMPOSE = ROOT / "deploy" / "compose.yaml"
PROFILES = ("cpu", "gateway", "trial")
SERVICES = ("triton-cpu", "haproxy", "prometheus", "blackbox", "gateway", "review", "orthanc", "viewer")
"""All of these profiles but Grafana, of which there is no stand-in."""
PATIENCE = 240.0
"""Seconds: a busy machine may stall for long, and each step has a limit of its own."""
PROXY, REVIEW, HEALTH, DICOM, ARCHIVE, PROMETHEUS, VIEWER = 8443, 8044, 8046, 11112, 8043, 9090, 8090


READABLE = "chgrp 99 {folder} {folder}/*.pem && chmod g+rX {folder} {folder}/*.pem"
"""As the head of compose.yaml says: HAProxy's group in its image."""


@dataclass(frozen=True)
class Site:
    """A running one.

    Attributes:
        folder: certificates, configuration and password that the services mount.
        environment: of podman-compose.
        override: a second compose file.
    """

    folder: Path
    environment: dict[str, str]
    override: Path | None = None

    def compose(self, *words: str, **options: Any) -> str:
        """`podman-compose` with the file, a test's own one over it, and its profiles."""
        profiles = [word for profile in PROFILES for word in ("--profile", profile)]
        files = [word for file in (COMPOSE, self.override) if file for word in ("--file", file)]
        command = ["podman-compose", "--in-pod=false", *files, *profiles, *words]
        return must(command, env=self.environment, **options)

    def name(self, service: str, number: int = 1) -> str:
        """Of its container."""
        return f"equipoise_{service}_{number}"

    def tls(self) -> Tls:
        pair = self.folder / "certs" / "clients"
        return Tls(self.folder / "certs" / "ca.pem", pair / "me.pem", pair / "me.key")

    def healthy(self, service: str, number: int = 1) -> bool:
        """Whether its own health check passes; podman has no timer for it without systemd."""
        return run(["podman", "healthcheck", "run", self.name(service, number)]).returncode == 0

    def ready(self, services: Sequence[str] = SERVICES) -> None:
        """Waits until all that have a health check are healthy."""
        for service in ("triton-cpu", "gateway", "review"):
            if service in services:
                wait(lambda service=service: self.healthy(service), f"{service} is healthy", PATIENCE)


def configuration(folder: Path) -> dict[str, str]:
    """Certificates, a password, the gateway's files; what the compose file reads."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    make_certificates(folder / "certs", hosts=["localhost"], clients=["me"])
    must(["sh", "-c", READABLE.format(folder=folder / "certs")])
    (folder / "password").write_text("a password of the test", encoding="utf-8")
    gateway = folder / "gateway"
    shutil.copytree(ROOT / "deploy" / "gateway", gateway)
    text = (gateway / "gateway.toml").read_text()
    # What a site would set: room that is kept free, how long a study is awaited, and results that are sent without an
    # expert's verdict.
    text = text.replace("\n[triton]\n", "reserve_megabytes = 16\n\n[triton]\n")
    text = text.replace("[receive]\n", "[receive]\nquiet_seconds = 2.0\n")
    text = text.replace("[deliver]\n", '[deliver]\nreview = "send"\nreject = "send"\n')
    (gateway / "gateway.toml").write_text(text)
    return {
        "EQUIPOISE_CERTS": str(folder / "certs"),
        "EQUIPOISE_GATEWAY": str(gateway),
        "GRAFANA_PASSWORD_FILE": str(folder / "password"),
        "EQUIPOISE_MEMORY": "8g",
    }


@contextmanager
def site(
    services: Sequence[str] = SERVICES,
    changed: Mapping[str, Any] | None = None,
    volumes: Mapping[str, int] | None = None,
) -> Iterator[Site]:
    """Up, ready, and gone afterwards with its volumes.

    Args:
        changed: service → what is changed of it or added, as a compose file says it.
        volumes: volume → MiB of a file system of its own, in memory, for user 1000.
    """
    needed = {"triton-cpu": "equipoise/server", "gateway": "equipoise/gateway"}
    require_images(image for service, image in needed.items() if service in services)
    if "viewer" in services and run(["bash", ROOT / "deploy/viewer/fetch.sh", ROOT / "build/viewer"]).returncode:
        services = [service for service in services if service != "viewer"]
    enter_namespace()  # from here on nothing can be fetched
    folder = BUILD / "site"
    environment, override = configuration(folder), None
    if changed:
        override = folder / "override.yaml"
        override.write_text(yaml.safe_dump({"services": dict(changed)}), encoding="utf-8")
    made = Site(folder, environment, override)
    down(made)
    try:
        for name, size in (volumes or {}).items():
            # In pages, since podman takes a size for a quota of its own.
            limits = f"o=nr_blocks={size * (1 << 20) // os.sysconf('SC_PAGE_SIZE')},{OWNED}"
            options = [f"--opt={each}" for each in ("type=tmpfs", "device=tmpfs", limits)]
            podman("volume", "create", "--label", "io.podman.compose.project=equipoise", *options, f"equipoise_{name}")
        made.compose("up", "--detach", "--no-build", *services)
        made.ready(services)
        yield made
    except BaseException:
        for name in podman("ps", "--all", "--format", "{{.Names}}").split():
            print(f"== {name}\n{logs_end(name)}", flush=True)
        raise
    finally:
        down(made)


def down(made: Site) -> None:
    """Podman-compose takes down what its files name: not a second replica, which `up --scale` had made."""
    mine = podman("ps", "--all", "--quiet", "--filter", "label=io.podman.compose.project=equipoise").split()
    if mine:
        podman("rm", "--force", "--depend", "--ignore", "--time", "0", *mine)
    made.compose("down", "--volumes", "--timeout", "0")


OWNED = "uid=1000,gid=1000,mode=0700"


def logs_end(container: str, lines: int = 15) -> str:
    done = run(["podman", "logs", "--tail", str(lines), container])
    return (done.stdout + done.stderr)[-3000:]


def get(port: int, path: str, timeout: float = 10.0) -> bytes:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=timeout) as answer:
        return bytes(answer.read())


def get_json(port: int, path: str) -> Any:
    return json.loads(get(port, path))


def data() -> Path:
    """The shared data. Raises Absent."""
    if not os.environ.get("EQUIPOISE_DATA"):
        raise Absent("EQUIPOISE_DATA is not set: there is no study to send")
    return Path(os.environ["EQUIPOISE_DATA"])
