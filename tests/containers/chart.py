"""The chart as rendered, played by `podman kube play` as far as that goes; kubernetes-validate judges the rest.

Played are deployments, config maps, claims, security contexts and volumes of a stable release, its reverse proxy and
its canary. Podman 4.3 makes a folder that only root can write of an `emptyDir` in memory, and mounts a secret's files
as they are encoded: folders of this machine stand for both. A service is an alias in the network. It has no probes and
no scheduler: the test asks as a kubelet does, and there is one replica. A GPU's pod is played to see it refuse.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import helm_python
import kubernetes_validate
import numpy as np
import yaml
from equipoise_client import Retry, UncertaintyClient
from equipoise_client.errors import EquipoiseError
from equipoise_client.transport import Tls
from equipoise_deploy.certs import make_certificates

from ..support.steps import Note, Wrong
from .compose import confined
from .engine import BUILD, ROOT, enter_namespace, inspect, logs, must, podman, run, wait
from .images import require_images
from .site import PROXY, READABLE, logs_end

CHART = ROOT / "deploy" / "helm" / "equipoise"
KUBERNETES = "1.37"
IMAGE: dict[str, Any] = {
    "image": {"repository": "localhost/equipoise/server", "tag": "latest", "pullPolicy": "Never"},
    "replicas": 1,
    "resources": {"requests": {"cpu": "1", "memory": "4Gi"}, "limits": {"cpu": "2", "memory": "8Gi"}},
    "haproxy": {"replicas": 1},
}
GPU = IMAGE
"""The default of `mode`."""
STABLE = {**IMAGE, "mode": "cpu", "canary": {"release": "equipoise-next", "weight": 100}}
CANARY = {
    **IMAGE,
    "mode": "cpu",
    "haproxy": {"enabled": False},
    "canaryOf": "equipoise",
    "models": {"source": "volume", "volume": {"claim": "models"}},
    "settings": {"format": "equipoise-settings/1", "models": {"pneumonia": {"aggregators": 2}}, "figures": {}},
}
NETWORK = "cluster"
FOREIGN = {"ServiceMonitor", "PrometheusRule", "ScaledObject"}


def rendered(name: str, values: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every object of an installation, as Kubernetes would take it."""
    with helm_python.Chart.load(CHART) as chart:
        documents = chart.render(dict(values), name=name, namespace="imaging")
    texts = [text for path, text in documents.items() if not path.endswith("NOTES.txt")]
    objects = [each for text in texts for each in yaml.safe_load_all(text) if each]
    for each in objects:
        if each["kind"] not in FOREIGN:
            kubernetes_validate.validate(each, KUBERNETES, strict=True)
    return objects


def component(objects: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    """What podman can play of a component: its deployment, and the config maps that it names."""
    (deployment,) = (each for each in objects if (each["kind"], each["metadata"]["name"]) == ("Deployment", name))
    volumes = deployment["spec"]["template"]["spec"]["volumes"]
    named = {volume["configMap"]["name"] for volume in volumes if "configMap" in volume}
    maps = [each for each in objects if each["kind"] == "ConfigMap" and each["metadata"]["name"] in named]
    return [*maps, deployment]


@contextmanager
def cluster() -> Iterator[None]:
    """A network, gone afterwards. Not an internal one, which publishes no ports."""
    run(["podman", "network", "create", NETWORK])
    try:
        yield
    finally:
        run(["podman", "network", "rm", "--force", NETWORK])


@contextmanager
def pod(
    objects: list[dict[str, Any]], service: str, secrets: Mapping[str, Path], published: bool = False
) -> Iterator[str]:
    """A played deployment behind its service's name; the name of its container.

    Args:
        secrets: name of a secret → folder with its files.
        published: whether its ports are this namespace's as well, as podman has it for every port of a container.
    """
    *_, deployment = objects
    spec = deployment["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    memory = Path(tempfile.mkdtemp(dir="/dev/shm"))
    memory.chmod(0o1777)
    for volume in spec["volumes"]:
        if volume.get("emptyDir", {}).get("medium") == "Memory":
            volume.pop("emptyDir")
            volume["hostPath"] = {"path": str(memory), "type": "Directory"}
        if secret := volume.pop("secret", None):
            volume["hostPath"] = {"path": str(secrets[secret["secretName"]]), "type": "Directory"}
    if not published:
        container.pop("ports")
    file = BUILD / "cluster" / f"{deployment['metadata']['name']}.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.safe_dump_all(objects), encoding="utf-8")
    try:
        podman("kube", "play", "--network", f"{NETWORK}:alias={service}", file)
        yield wait(lambda: running(deployment["metadata"]["name"], container["name"]), f"{service} runs", 60.0)
    except BaseException:
        name = running(deployment["metadata"]["name"], container["name"])
        print(f"== {name}\n{logs_end(name, 40)}", flush=True)
        raise
    finally:
        run(["podman", "kube", "down", file])
        shutil.rmtree(memory)


def service(name: str) -> str:
    return f"{name}-server.imaging.svc.cluster.local"


def played(target: object, note: Note) -> str:
    """Two releases and the stable one's proxy, asked as clients ask and by the probes: loaded, reloaded, drained."""
    require_images(["equipoise/server"])
    enter_namespace()
    stable, canary = rendered("equipoise", STABLE), rendered("equipoise-next", CANARY)
    secrets, tls = certificates(BUILD / "cluster")
    claim("models")
    with ExitStack() as opened:
        opened.enter_context(cluster())
        begin = time.monotonic()
        servers = component(stable, "equipoise-server"), component(canary, "equipoise-next-server")
        names = [
            opened.enter_context(pod(objects, service(name), secrets))
            for objects, name in zip(servers, ("equipoise", "equipoise-next"), strict=True)
        ]
        proxy = opened.enter_context(pod(component(stable, "equipoise-haproxy"), "equipoise", secrets, published=True))
        container = servers[0][-1]["spec"]["template"]["spec"]["containers"][0]
        addresses = [address_of(name) for name in names]
        startup = container["startupProbe"]
        limit = startup["periodSeconds"] * startup["failureThreshold"]
        for address in addresses:
            wait(lambda address=address: probe(address, startup) == 200, "the startup probe passes", min(180.0, limit))
        note("seconds until started", round(time.monotonic() - begin, 1))
        note("confined", {name: confined(name) for name in (*names, proxy)})
        note("answered by", shared(proxy, tls))
        note("under load", under_load(addresses[0], container))
        note("reloaded", reloaded(names[0], addresses[0], tls))
        note("draining", drained(names[0], addresses[0]))
    note("a GPU's pod without a GPU", refused())
    return "stable release, proxy and canary answer together; probes pass under load, fail while reloading and draining"


def certificates(folder: Path) -> tuple[dict[str, Path], Tls]:
    """Secrets as the chart's defaults name them, each a folder, and a client's certificate."""
    shutil.rmtree(folder, ignore_errors=True)
    made = folder / "certs"
    make_certificates(made, hosts=["localhost"], clients=["me"])
    secrets = {"equipoise-server-tls": folder / "server", "equipoise-client-authority": folder / "authority"}
    for source, (secret, name) in {
        "server.bundle.pem": ("equipoise-server-tls", "tls-combined.pem"),
        "ca.pem": ("equipoise-client-authority", "ca.crt"),
    }.items():
        secrets[secret].mkdir()
        shutil.copyfile(made / source, secrets[secret] / name)
        must(["sh", "-c", READABLE.replace("*.pem", "*").format(folder=secrets[secret])])
    return secrets, Tls(made / "ca.pem", made / "clients" / "me.pem", made / "clients" / "me.key")


def claim(name: str) -> None:
    """A volume with the models of the server's image, as a cluster's administrator provides it."""
    run(["podman", "volume", "rm", "--force", name])
    podman("volume", "create", name)
    copy = ["--user=0:0", "--network=none", f"--volume={name}:/claim", "--entrypoint=cp"]
    podman("run", "--rm", *copy, "localhost/equipoise/server", "-a", "/models/.", "/claim/")


def shared(proxy: str, tls: Tls) -> dict[str, int]:
    """Requests through the reverse proxy; which of its servers answered how many. Raises Wrong unless both did."""
    pixels = np.full((1, 28, 28), 90.0, np.float32)
    with (
        UncertaintyClient(f"localhost:{PROXY}", tls=tls, timeout=60.0) as client,
        ThreadPoolExecutor(4) as pool,
    ):
        wait(lambda: answers(client), "the proxy answers", 60.0)
        for _ in pool.map(lambda seed: client.predict("pneumonia", pixels, seed=seed, outputs=()), range(40)):
            pass
    lines = [json.loads(line) for line in logs(proxy).splitlines() if '"method":"/inference' in line]
    found = Counter(line["replica"].rstrip("0123456789") for line in lines if line["method"].endswith("ModelInfer"))
    if {"r", "canary"} - found.keys():
        raise Wrong(f"stable release and canary did not both answer: {dict(found)}")
    return dict(found)


def answers(client: UncertaintyClient) -> bool:
    try:
        return client.contract("pneumonia").name == "pneumonia"
    except EquipoiseError:
        return False


def reloaded(container: str, address: str, tls: Tls) -> dict[str, Any]:
    """SIGHUP while clients ask: not ready, ready again; meanwhile the canary answers and nothing fails."""
    seen, pixels = list[int](), np.full((1, 28, 28), 90.0, np.float32)
    readiness = {"httpGet": {"path": "/healthz"}, "timeoutSeconds": 3}
    with UncertaintyClient(f"localhost:{PROXY}", tls=tls, timeout=90.0, retry=Retry(5)) as client:
        done = False

        def keep_asking(seed: int) -> int:
            count = 0
            while not done:
                client.predict("pneumonia", pixels, seed=seed, outputs=())
                count += 1
            return count

        def status() -> int:
            seen.append(probe(address, readiness))
            return seen[-1]

        with ThreadPoolExecutor(2) as pool:  # more would take the processor from what is starting
            futures = [pool.submit(keep_asking, seed) for seed in range(2)]
            try:
                podman("kill", "--signal", "HUP", container)
                wait(lambda: status() == 503, "it is not ready while it reloads", 30.0)
                wait(lambda: status() == 200, "it is ready again", 300.0)
            finally:
                done = True
            answered = sum(future.result() for future in futures)
    return {"answered meanwhile": answered, "statuses": dict(Counter(seen))}


def refused() -> str:
    """What the server's pod of the default values says where there is no GPU. Raises Wrong where it becomes ready."""
    with cluster(), pod(component(rendered("equipoise", GPU), "equipoise-server"), service("equipoise"), {}) as name:
        address = address_of(name)
        said = wait(
            lambda: [line for line in logs(name).splitlines() if "GPU" in line], "it says what is missing", 120.0
        )
        if probe(address, {"httpGet": {"path": "/healthz"}, "timeoutSeconds": 3}) == 200:
            raise Wrong("a pod for a GPU is ready without one")
    return str(said[0])[:300]


def running(deployment: str, container: str) -> str:
    """Name of the container of a deployment's pod; empty: none runs."""
    names = podman("ps", "--format", "{{.Names}}").split()
    return next((name for name in names if name.startswith(f"{deployment}-pod") and name.endswith(f"-{container}")), "")


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
    """SIGTERM, as a kubelet sends it first: it says that it is not ready, then ends; a new one takes its place."""
    begin, before = time.monotonic(), inspect(container)["State"]["StartedAt"]
    podman("kill", "--signal", "TERM", container)
    not_ready = {"httpGet": {"path": "/healthz"}, "timeoutSeconds": 3}
    seen = list[int]()

    def says() -> bool:
        """A connection that is refused is the end, and not what a proxy has to see before it."""
        seen.append(probe(address, not_ready))
        return seen[-1] in (503, 0)

    wait(says, "it says that it drains", 30.0)
    if seen[-1] != 503:
        raise Wrong(f"before it ended it never said that it was not ready: {seen[-5:]}")
    first = round(time.monotonic() - begin, 1)
    wait(lambda: inspect(container)["State"]["StartedAt"] != before, "it ends", 80.0)
    return {"not ready after": first, "ended after": round(time.monotonic() - begin, 1)}
