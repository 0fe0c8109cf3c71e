"""The chart's server as rendered, played by `podman kube play` as far as that goes: no service, policy or scaling.

Not its proxies: podman 4.3 mounts a secret's files as they are encoded, so HAProxy finds no certificate. It publishes
every port of a container on the host as well, so there is one replica.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import helm_python
import numpy as np
import yaml
from equipoise_client import Retry, UncertaintyClient

from ..support.steps import Note, Wrong
from .compose import confined
from .engine import BUILD, ROOT, enter_namespace, inspect, podman, run, wait
from .images import require_images
from .site import logs_end

CHART = ROOT / "deploy" / "helm" / "equipoise"
VALUES: dict[str, Any] = {
    "mode": "cpu",
    "image": {"repository": "localhost/equipoise/server", "tag": "latest", "pullPolicy": "Never"},
    "replicas": 1,
    "resources": {"requests": {"cpu": "1", "memory": "4Gi"}, "limits": {"cpu": "2", "memory": "8Gi"}},
}
NETWORK = "cluster"
DEPLOYMENT = ("Deployment", "equipoise-server")


def rendered() -> list[dict[str, Any]]:
    """Every object of an installation named `equipoise`."""
    with helm_python.Chart.load(CHART) as chart:
        documents = chart.render(VALUES, name="equipoise", namespace="imaging")
    texts = [text for path, text in documents.items() if not path.endswith("NOTES.txt")]
    return [each for text in texts for each in yaml.safe_load_all(text) if each]


@contextmanager
def cluster(folder: Path) -> Iterator[dict[str, Any]]:
    """The server's deployment in a network of its own; gone afterwards."""
    (server,) = [each for each in rendered() if (each["kind"], each["metadata"]["name"]) == DEPLOYMENT]
    folder.mkdir(parents=True, exist_ok=True)
    # As an `emptyDir` in memory is on Kubernetes; podman 4.3 makes a folder in its place that only root can write.
    memory = Path(tempfile.mkdtemp(dir="/dev/shm"))
    memory.chmod(0o1777)
    for volume in server["spec"]["template"]["spec"]["volumes"]:
        if volume.get("emptyDir", {}).get("medium") == "Memory":
            volume.pop("emptyDir")
            volume["hostPath"] = {"path": str(memory), "type": "Directory"}
    file = folder / "played.yaml"
    file.write_text(yaml.safe_dump(server), encoding="utf-8")
    run(["podman", "network", "create", "--internal", NETWORK])
    try:
        podman("kube", "play", "--network", NETWORK, file)
        yield server
    except BaseException:
        for name in podman("ps", "--all", "--format", "{{.Names}}").split():
            print(f"== {name}\n{logs_end(name)}", flush=True)
        raise
    finally:
        run(["podman", "kube", "down", file])
        run(["podman", "network", "rm", "--force", NETWORK])
        shutil.rmtree(memory)


def played(target: object, note: Note) -> str:
    """The server's pod as the chart has it, asked by its probes while it is loaded and while it drains."""
    require_images(["equipoise/server"])
    enter_namespace()
    folder = BUILD / "cluster"
    with cluster(folder) as server:
        (container,) = server["spec"]["template"]["spec"]["containers"]
        name = wait(lambda: running("-triton"), "the server's container runs", 60.0)
        address = address_of(name)
        startup = container["startupProbe"]
        limit = startup["periodSeconds"] * startup["failureThreshold"]
        begin = time.monotonic()
        wait(lambda: probe(address, startup) == 200, "the startup probe passes", min(120.0, limit))
        note("seconds until started", round(time.monotonic() - begin, 1))
        note("confined", confined(name))
        note("under load", under_load(address, container))
        note("draining", drained(name, address))
    return "the server's deployment with its security context and volumes; its probes pass under load and fail on drain"


def running(suffix: str) -> str:
    """Name of the container of a pod; empty: none runs."""
    names = podman("ps", "--format", "{{.Names}}").split()
    return next((name for name in names if name.endswith(suffix)), "")


def address_of(container: str) -> str:
    """In the cluster's network, which its pod's first container holds."""
    (found,) = json.loads(podman("container", "inspect", container))
    pod = json.loads(podman("pod", "inspect", found["Pod"]))
    (infra,) = json.loads(podman("container", "inspect", pod["InfraContainerID"]))
    return str(infra["NetworkSettings"]["Networks"][NETWORK]["IPAddress"])


def probe(address: str, each: dict[str, Any]) -> int:
    """As a kubelet sends it: the status, or 0 where none came in time."""
    url = f"http://{address}:8003{each['httpGet']['path']}"
    try:
        with urllib.request.urlopen(url, timeout=each["timeoutSeconds"]) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as refusal:
        return refusal.code
    except OSError:
        return 0


def under_load(address: str, container: dict[str, Any], seconds: float = 30.0) -> dict[str, Any]:
    """Probes at the chart's intervals while every aggregator is busy. Raises Wrong where the pod would be killed."""
    pixels = np.full((1, 28, 28), 90.0, np.float32)
    wrong: dict[str, int] = {"readinessProbe": 0, "livenessProbe": 0}
    end, answered = time.monotonic() + seconds, 0
    with UncertaintyClient(f"{address}:8001", timeout=90.0, retry=Retry(1)) as client, ThreadPoolExecutor(16) as pool:
        client.contract("pneumonia")

        def keep_asking(seed: int) -> int:
            count = 0
            while time.monotonic() < end:
                client.predict("pneumonia", pixels, samples=1000, seed=seed, outputs=())
                count += 1
            return count

        futures = [pool.submit(keep_asking, seed) for seed in range(16)]
        asked = 0
        while time.monotonic() < end:
            for kind in wrong:
                wrong[kind] += probe(address, container[kind]) != 200
            asked += 1
            time.sleep(container["readinessProbe"]["periodSeconds"])
        answered = sum(future.result() for future in futures)
    if any(wrong.values()):
        raise Wrong(f"probes failed on a busy pod: {wrong} of {asked}")
    return {"probes": asked, "failed": wrong, "answered": answered}


def drained(container: str, address: str) -> dict[str, Any]:
    """SIGTERM, as a kubelet sends it first: not ready at once, then the end; a new container takes its place."""
    begin, before = time.monotonic(), inspect(container)["State"]["StartedAt"]
    podman("kill", "--signal", "TERM", container)
    not_ready = {"httpGet": {"path": "/healthz"}, "timeoutSeconds": 3}
    wait(lambda: probe(address, not_ready) in (503, 0), "it says that it drains", 10.0)
    first = round(time.monotonic() - begin, 1)
    wait(lambda: inspect(container)["State"]["StartedAt"] != before, "it ends", 80.0)
    return {"not ready after": first, "ended after": round(time.monotonic() - begin, 1)}
