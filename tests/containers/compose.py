"""What compose.yaml starts, asked from outside as clients, a modality, an archive and a monitor ask."""

from __future__ import annotations

import json
import math
import shutil
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from equipoise_client import Retry, UncertaintyClient
from equipoise_client.errors import EquipoiseError

from ..support.gateways import send
from ..support.steps import Note, Wrong
from ..support.watching import EXPRESSIONS, RULES, Prometheus
from .engine import inspect, logs, podman, run, wait
from .site import ARCHIVE, DICOM, PROMETHEUS, PROXY, REVIEW, VIEWER, Site, data, get, get_json, site

SERVER = ("triton-cpu", "haproxy")


def compose(target: object, note: Note) -> str:
    """Up, confined, and a decision over mutual TLS."""
    begin = time.monotonic()
    with site(SERVER) as up:
        note("seconds until healthy", round(time.monotonic() - begin, 1))
        for service in SERVER:
            note(service, confined(up.name(service)))
        no_way_out(up.name("triton-cpu"))
        note("answer", predict(up))
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


def predict(up: Site) -> str:
    """The command as a person calls it; the route."""
    tls = up.tls()
    words = ["--tls-root", tls.root, "--tls-cert", tls.certificate, "--tls-key", tls.key, "--json"]
    done = run([*PREDICT, image(up.folder), "--url", f"localhost:{PROXY}", *words])
    if done.returncode:
        raise Wrong(f"predict over mutual TLS failed: {done.stderr[-500:]}")
    (found,) = json.loads(done.stdout)
    return str(found["route"])


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


def study_in_results_back(target: object, note: Note) -> str:
    """A modality sends, Orthanc gets SEG, maps and report, the worklist shows the case, OHIF is served."""
    images = [file.read_bytes() for file in sorted((data() / "dicom" / "study1-hippocampus-crop").glob("*.dcm"))]
    with site() as up:
        for service in ("gateway", "review"):
            note(service, confined(up.name(service)))
        if set(send(DICOM, images)) != {0}:
            raise Wrong("the gateway did not take every image")
        found = wait(lambda: results() if {"SEG", "SR"} <= results().keys() else None, "results in the archive", 180.0)
        note("results", dict(found))
        if shutil.which("chromium"):
            note("cases in the worklist", worklist(up))
        viewer = up.name("viewer") in podman("ps", "--format", "{{.Names}}")
        if viewer and b"<html" not in get(VIEWER, "/").lower():
            raise Wrong("OHIF's page is not served")
        if viewer and not get_json(VIEWER, "/dicom-web/studies"):
            raise Wrong("OHIF's origin does not reach the archive")
        note("viewer", viewer)
        before = results()
        up.compose("restart", "gateway")
        wait(lambda: up.healthy("gateway"), "the gateway is back", 60.0)
        if set(send(DICOM, images)) != {0} or results() != before:
            raise Wrong("after a restart of the gateway the study's results have changed")
    return f"a study went in over DICOM, {sum(found.values())} results came back: {dict(found)}"


def results() -> Counter[str]:
    """Modality → series in the archive."""
    return Counter(
        get_json(ARCHIVE, f"/series/{series}")["MainDicomTags"]["Modality"] for series in get_json(ARCHIVE, "/series")
    )


def worklist(up: Site) -> int:
    """Cases that a reviewer sees who has signed in with a token of that container."""
    from playwright.sync_api import sync_playwright

    from ..support.review_page import CHROMIUM

    command = ["equipoise", "review", "/etc/equipoise/gateway.toml", "--new-reviewer", "dr.who"]
    token = podman("exec", up.name("review"), *command).split()[-1]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=list(CHROMIUM))
        page = browser.new_page()
        page.goto(f"http://127.0.0.1:{REVIEW}/")
        page.get_by_label("Your token").fill(token)
        page.keyboard.press("Enter")
        page.locator("article").first.wait_for()
        return page.locator("article").count()


def watching(target: object, note: Note) -> str:
    """Prometheus scrapes all, each rule evaluates, and the dashboard's expressions have numbers."""
    with site(SERVICES_WATCHED) as up:
        seen = Prometheus(f"http://127.0.0.1:{PROMETHEUS}")
        for _ in range(3):
            predict(up)
        wait(lambda: not down(seen), "every target is up", 90.0)
        wait(lambda: not amiss(seen), "every rule evaluates", 60.0)
        rules = [rule["name"] for group in seen.get("rules")["groups"] for rule in group["rules"]]
        if set(rules) != {rule.get("alert") or rule["record"] for rule in RULES}:
            raise Wrong("Prometheus does not have the rules of deploy/prometheus/rules")
        answered = [name for name, expression in EXPRESSIONS.items() if shows(seen, expression)]
        note("targets", seen.values("sum(up)"))
        note(
            "certificate ends in days",
            round(seen.shows("probe_ssl_earliest_cert_expiry")[0] / 86400 - time.time() / 86400),
        )
        note("without a number", sorted(EXPRESSIONS.keys() - set(answered)))
    return f"{len(rules)} rules evaluate, {len(answered)} of {len(EXPRESSIONS)} dashboard expressions have a number"


SERVICES_WATCHED = ("triton-cpu", "haproxy", "prometheus", "blackbox", "gateway")


def down(seen: Prometheus) -> list[str]:
    targets = seen.get("targets")["activeTargets"]
    return [target["scrapeUrl"] for target in targets if target["health"] != "up"] if targets else ["none"]


def amiss(seen: Prometheus) -> list[str]:
    rules = [rule for group in seen.get("rules")["groups"] for rule in group["rules"]]
    return [rule["name"] for rule in rules if rule["health"] != "ok"]


def shows(seen: Prometheus, expression: str) -> bool:
    return any(math.isfinite(value) for value in seen.values(expression))


@dataclass
class Load:
    """Requests one after the other from several callers, through the reverse proxy.

    Attributes:
        outcomes: "answered", or the kind of error with its words.
    """

    up: Site
    callers: int = 4
    attempts: int = 1
    outcomes: Counter[str] = field(default_factory=Counter)
    _stop: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        pixels = np.full((1, 28, 28), 90.0, np.float32)
        with UncertaintyClient(
            f"localhost:{PROXY}", tls=self.up.tls(), timeout=60.0, retry=Retry(self.attempts)
        ) as client:
            while not self._stop.is_set():
                try:
                    client.predict("pneumonia", pixels, outputs=())
                    self.outcomes["answered"] += 1
                except EquipoiseError as error:
                    self.outcomes[f"{type(error).__name__}: {str(error)[:160]}"] += 1
                    self._stop.wait(0.05)

    def stop(self) -> None:
        self._stop.set()


@contextmanager
def load(up: Site, attempts: int) -> Iterator[Load]:
    """Under way while the block runs; all outcomes are there afterwards."""
    running = Load(up, attempts=attempts)
    with ThreadPoolExecutor(running.callers) as pool:
        futures: list[Future[None]] = [pool.submit(running.run) for _ in range(running.callers)]
        try:
            wait(lambda: running.outcomes["answered"] > 20, "requests are answered")
            yield running
        finally:
            running.stop()
        for future in futures:
            future.result()


@dataclass
class Burst:
    """Requests that are all sent at once, each once, and wait or run when something is done to the server.

    As many as a busy machine of two cores answers within the 30 s that a stop gives them.
    """

    up: Site
    count: int = 60

    def __post_init__(self) -> None:
        self._pool = ThreadPoolExecutor(self.count)
        client = UncertaintyClient(f"localhost:{PROXY}", tls=self.up.tls(), timeout=90.0, retry=Retry(1))
        client.contract("pneumonia")
        pixels = np.full((1, 28, 28), 90.0, np.float32)
        self._futures = [
            self._pool.submit(client.predict, "pneumonia", pixels, samples=300, seed=seed, outputs=())
            for seed in range(self.count)
        ]

    @property
    def done(self) -> int:
        return sum(future.done() for future in self._futures)

    def accepted(self) -> bool:
        return waiting(self.up) + self.done >= self.count

    def lost(self) -> list[str]:
        """What became of those that have no answer, when all have come to an end."""
        found = [str(future.exception()) for future in self._futures if future.exception()]
        self._pool.shutdown()
        return found


def waiting(up: Site) -> float:
    """Requests that the server has accepted and not answered."""
    script = "import urllib.request as u; print(u.urlopen('http://127.0.0.1:8002/metrics', timeout=5).read().decode())"
    page = run(["podman", "exec", up.name("triton-cpu"), "python3", "-c", script]).stdout
    return sum(
        float(line.split()[-1])
        for line in page.splitlines()
        if line.startswith(("equipoise_in_flight{", "nv_inference_pending_request_count{"))
        and 'model="pneumonia"' in line
    )


def stops(target: object, note: Note) -> str:
    """A bare stop of the server, of everything, and a rolling restart onto a new image: nothing accepted is lost."""
    with site(SERVER) as up:
        for what in (("stop", "triton-cpu"), ("stop",)):
            wait(partial(run_predicts, up), "the proxy has found the server", 30.0)
            sent = Burst(up)
            wait(sent.accepted, "all were accepted", 30.0)
            left, begin = sent.count - sent.done, time.monotonic()
            up.compose(*what, timeout=120)
            seconds, lost = round(time.monotonic() - begin, 1), sent.lost()
            code = inspect(up.name("triton-cpu"))["State"]["ExitCode"]
            seen = {"unanswered then": left, "lost": len(lost), "seconds": seconds, "exit": code}
            note(" ".join(what), seen)
            if lost or not left or code:
                raise Wrong(f"`compose {' '.join(what)}`: {seen}; {lost[:2]}")
            up.compose("start", *(what[1:] or SERVER))
            up.ready(SERVER)
        rolling(up, note)
    return "a bare stop answers all that was accepted; a rolling restart fails no request"


def run_predicts(up: Site) -> bool:
    try:
        predict(up)
    except Wrong:
        return False
    return True


def rolling(up: Site, note: Note) -> None:
    """Two replicas; one after the other is restarted while callers ask. The proxy's own view says when it may go on."""
    up.compose("up", "--detach", "--no-build", "--scale", "triton-cpu=2", *SERVER)
    replicas = [up.name("triton-cpu", number) for number in (1, 2)]
    for number in (1, 2):
        wait(partial(up.healthy, "triton-cpu", number), f"replica {number} is healthy", 90.0)
    wait(lambda: in_service(up) == 2, "the proxy uses both", 30.0)
    with load(up, attempts=5) as running:
        for replica in replicas:
            podman("restart", replica)
            wait(lambda: in_service(up) == 2, f"{replica} is in service again", 90.0)
    note("rolling restart", dict(running.outcomes))
    if set(running.outcomes) != {"answered"}:
        raise Wrong(f"requests failed in a rolling restart: {dict(running.outcomes)}")


def in_service(up: Site) -> int:
    """Replicas that the reverse proxy would send a request to, from its own metrics."""
    script = "import urllib.request as u; print(u.urlopen('http://haproxy:8404/metrics', timeout=5).read().decode())"
    page = run(["podman", "exec", up.name("triton-cpu", 2), "python3", "-c", script]).stdout
    page = page or run(["podman", "exec", up.name("triton-cpu"), "python3", "-c", script]).stdout
    up_lines = (line for line in page.splitlines() if line.startswith("haproxy_server_status{"))
    return sum('state="UP"' in line and line.endswith(" 1") for line in up_lines)


def killed(target: object, note: Note) -> str:
    """SIGKILL of each container: it comes back, nothing hangs, nothing is answered wrongly."""
    services = (*SERVER, "gateway")
    with site(services) as up:
        for service in services:
            podman("kill", "--signal", "KILL", up.name(service))
            podman("wait", up.name(service))
            podman("start", up.name(service))  # as `restart: unless-stopped` does: podman has it done by systemd
            up.ready(services)
            wait(lambda: run_predicts(up), f"answers after {service} was killed", 60.0)
            note(service, "back")
    return "server, reverse proxy and gateway were killed in turn; each came back and clients were answered"
