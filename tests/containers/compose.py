"""What compose.yaml starts: how it is confined, and a decision over mutual TLS."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from ..support.steps import Note, Wrong
from .engine import BUILD, inspect, logs, podman, run
from .site import PROXY, Site, site

SERVER = ("triton-cpu", "haproxy")
ANSWER = BUILD / "answer.json"
DECIDED = ("route", "reason", "probability")


def compose(target: object, note: Note) -> str:
    """Up, confined, and a decision over mutual TLS."""
    begin = time.monotonic()
    with site(SERVER) as up:
        note("seconds until healthy", round(time.monotonic() - begin, 1))
        for service in SERVER:
            note(service, confined(up.name(service)))
        no_way_out(up.name("triton-cpu"))
        answer = predict(up)
        ANSWER.write_text(json.dumps(answer), encoding="utf-8")
        note("answer", answer)
        without = run([*PREDICT, image(up.folder), "--url", f"localhost:{PROXY}", "--tls-root", up.tls().root])
        if without.returncode == 0:
            raise Wrong("a client without a certificate was answered")
        if not logs(up.name("haproxy")).count('"client":"me"'):
            raise Wrong("the reverse proxy's audit line does not name the client")
    return "server behind the reverse proxy: confined as written, answers over mutual TLS, refuses without certificate"


PREDICT = (sys.executable, "-m", "equipoise_client.cli.main", "predict", "pneumonia")


def image(folder: Path) -> Path:
    """A grey picture, which the model may find unsuitable: any route is a decision."""
    from PIL import Image

    path = folder / "grey.png"
    Image.new("L", (28, 28), 90).save(path)
    return path


def predict(up: Site) -> dict[str, Any]:
    """The command as a person calls it; what was decided, without when and where. Raises Wrong."""
    tls = up.tls()
    words = ["--tls-root", tls.root, "--tls-cert", tls.certificate, "--tls-key", tls.key, "--json"]
    done = run([*PREDICT, image(up.folder), "--url", f"localhost:{PROXY}", *words])
    if done.returncode:
        raise Wrong(f"predict over mutual TLS failed: {done.stderr[-500:]}")
    (found,) = json.loads(done.stdout)
    return {name: found[name] for name in DECIDED}


def at_home() -> dict[str, Any]:
    """What the first step was answered. Raises Wrong."""
    if not ANSWER.is_file():
        raise Wrong(f"{ANSWER} is not there; run the step `compose` before this one")
    return dict(json.loads(ANSWER.read_text(encoding="utf-8")))


def confined(container: str) -> dict[str, Any]:
    """What its kernel says of it. Raises Wrong where it may do more than is written."""
    status = podman("exec", container, "cat", "/proc/1/status")
    fields = {name: value.strip() for name, _, value in (line.partition(":") for line in status.splitlines())}
    mounts = podman("exec", container, "cat", "/proc/1/mounts").splitlines()
    root = next(line for line in mounts if line.split()[1] == "/")
    found = {
        "user": int(fields["Uid"].split()[0]),
        "capabilities": int(fields["CapEff"], 16),
        "no new privileges": fields["NoNewPrivs"] == "1",
        "read-only": "ro" in root.split()[3].split(","),
        "memory": inspect(container)["HostConfig"]["Memory"],
    }
    if not found["user"] or found["capabilities"] or not found["no new privileges"] or not found["read-only"]:
        raise Wrong(f"{container} may do more than compose.yaml says: {found}")
    if not found["memory"]:
        raise Wrong(f"{container} has no memory limit")
    return found


def no_way_out(container: str) -> None:
    """Its network has no route but its own."""
    routes = podman("exec", container, "cat", "/proc/net/route").splitlines()[1:]
    if any(line.split()[1] == "00000000" for line in routes):
        raise Wrong(f"{container} has a way out of its network: {routes}")
