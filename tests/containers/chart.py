"""The chart's rendered manifests, played by `podman kube play` as far as that goes: no service, policy or scaling."""

from __future__ import annotations

import base64
import json
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
from .engine import BUILD, ROOT, enter_namespace, podman, run, wait
from .images import require_images
from .site import configuration

CHART = ROOT / "deploy" / "helm" / "equipoise"
VALUES: dict[str, Any] = {
    "mode": "cpu",
    "image": {"repository": "localhost/equipoise/server", "tag": "latest", "pullPolicy": "Never"},
    "resources": {"requests": {"cpu": "1", "memory": "4Gi"}, "limits": {"cpu": "2", "memory": "8Gi"}},
}
PLAYED = {"ConfigMap", "Deployment"}
NETWORK = "cluster"
SERVER, PROXY = "equipoise-server-pod", "equipoise-haproxy-pod"


def rendered() -> list[dict[str, Any]]:
    """Every object of an installation named `equipoise`."""
    with helm_python.Chart.load(CHART) as chart:
        documents = chart.render(VALUES, name="equipoise", namespace="imaging")
    texts = [text for path, text in documents.items() if not path.endswith("NOTES.txt")]
    return [each for text in texts for each in yaml.safe_load_all(text) if each]


def secret(name: str, **files: Path) -> dict[str, Any]:
    data = {key: base64.b64encode(file.read_bytes()).decode() for key, file in files.items()}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "data": data}


@contextmanager
def cluster(folder: Path) -> Iterator[list[dict[str, Any]]]:
    """Its pods run in a network of their own; gone afterwards."""
    objects = [each for each in rendered() if each["kind"] in PLAYED]
    certificates = folder / "certs"
    objects = [
        secret("equipoise-server-tls", **{"tls-combined.pem": certificates / "server.bundle.pem"}),
        secret("equipoise-client-authority", **{"ca.crt": certificates / "ca.pem"}),
        *objects,
    ]
    file = folder / "played.yaml"
    file.write_text(yaml.safe_dump_all(objects), encoding="utf-8")
    run(["podman", "network", "create", "--internal", NETWORK])
    try:
        podman("kube", "play", "--network", NETWORK, file)
        yield objects
    except BaseException:
        for name in podman("ps", "--all", "--format", "{{.Names}}").split():
            print(f"== {name}: {run(['podman', 'logs', '--tail', '15', name])}", flush=True)
        raise
    finally:
        run(["podman", "kube", "down", file])
        run(["podman", "secret", "rm", "--all"])
        run(["podman", "network", "rm", "--force", NETWORK])


def played(target: object, note: Note) -> str:
    """The server's pod as the chart has it, asked by its probes while it is loaded and while it drains."""
    require_images(["equipoise/server"])
    enter_namespace()
    folder = BUILD / "cluster"
    configuration(folder)
    with cluster(folder) as objects:
        (server,) = [each for each in objects if each["metadata"]["name"] == "equipoise-server"]
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
        note("proxy", run(["podman", "logs", "--tail", "3", running("-haproxy") or "none"]).stdout[-300:])
        note("draining", drained(name, address))
    return "deployments, config maps, secrets and security contexts are taken; probes stay 200 under load, 503 on drain"


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
    """SIGTERM, as a kubelet sends it first: not ready at once, then the end, within the grace period."""
    begin = time.monotonic()
    podman("kill", "--signal", "TERM", container)
    not_ready = {"httpGet": {"path": "/healthz"}, "timeoutSeconds": 3}
    wait(lambda: probe(address, not_ready) in (503, 0), "it says that it drains", 10.0)
    first = round(time.monotonic() - begin, 1)
    podman("wait", container)
    return {"not ready after": first, "ended after": round(time.monotonic() - begin, 1)}
