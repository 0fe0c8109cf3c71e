"""A real Prometheus for tests: on a free port, in a folder of its own, gone at the end."""

from __future__ import annotations

import json
import re
import subprocess
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from .asking import poll

PROMETHEUS = Path(__file__).parents[2] / "deploy" / "prometheus"
DASHBOARD = json.loads((PROMETHEUS.parent / "grafana" / "equipoise.json").read_text(encoding="utf-8"))
EXPRESSIONS = {
    f"{panel['title']}: {target['legendFormat']}": target["expr"].replace("$model", ".*")
    for panel in DASHBOARD["panels"]
    for target in panel.get("targets", ())
}
"""Of the dashboard: what is asked for all models."""

RULES = [
    rule
    for file in sorted((PROMETHEUS / "rules").glob("*.yml"))
    for group in yaml.safe_load(file.read_text())["groups"]
    for rule in group["rules"]
]
"""Recording rules and alerts."""


@dataclass(frozen=True)
class Prometheus:
    """A running one.

    Attributes:
        url: with scheme, without a path.
    """

    url: str

    def get(self, path: str, **arguments: str) -> Any:
        """`data` of an answer. Raises AssertionError with Prometheus's own words."""
        query = f"?{urllib.parse.urlencode(arguments)}" if arguments else ""
        try:
            with urllib.request.urlopen(f"{self.url}/api/v1/{path}{query}", timeout=30) as answer:
                document = json.load(answer)
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{arguments}: {error.read().decode()}") from error
        assert document["status"] == "success", document
        return document["data"]

    def shows(self, expression: str, holds: Callable[[list[float]], bool] = bool) -> list[float]:
        """Its values, as soon as there are some that are as they should be: a scrape may be late or missed."""
        poll(lambda: (found := self.values(expression)) and holds(found), expression, 30.0)
        return self.values(expression)

    def values(self, expression: str) -> list[float]:
        """Of an instant query, now."""
        data = self.get("query", query=expression)
        if data["resultType"] == "scalar":
            return [float(data["result"][1])]
        return [float(each["value"][1]) for each in data["result"]]


@contextmanager
def prometheus(folder: Path, targets: dict[str, str]) -> Iterator[Prometheus]:
    """Ours, with its rules, but looking every second, and at `targets` (job → host:port) only."""
    document = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())
    document["global"] = {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
    document["rule_files"] = [str(PROMETHEUS / each) for each in document["rule_files"]]
    document["scrape_configs"] = [job for job in document["scrape_configs"] if job["job_name"] in targets]
    for job in document["scrape_configs"]:
        for discovery in [key for key in job if key.endswith("_sd_configs")]:
            del job[discovery]
        job["static_configs"] = [{"targets": [targets[job["job_name"]]]}]
    assert len(document["scrape_configs"]) == len(targets), "a job that deploy/prometheus/prometheus.yml does not know"
    folder.mkdir()
    (folder / "prometheus.yml").write_text(yaml.safe_dump(document))
    command = ["prometheus", f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data"]
    process = subprocess.Popen(
        [*command, "--web.listen-address=127.0.0.1:0", "--log.level=info"],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    with _killed_at_the_end(process) as lines:
        address = next(
            found[1] for line in lines if (found := re.search(r'msg="Listening on" address=(127\.0\.0\.1:\d+)', line))
        )
        poll(lambda: _ready(f"http://{address}/-/ready"), "Prometheus has read its configuration")
        yield Prometheus(f"http://{address}")


def _ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=10):
            return True
    except OSError:  # not yet, or too late
        return False


@contextmanager
def _killed_at_the_end(process: subprocess.Popen[str]) -> Iterator[Iterator[str]]:
    """Yields the lines that it writes to stderr until somebody stops reading; the rest is read and dropped."""
    assert process.stderr is not None
    stderr = process.stderr
    seen: list[str] = []

    def lines() -> Iterator[str]:
        for line in stderr:
            seen.append(line)
            yield line
            if "Listening on" in line:
                break
        else:
            raise AssertionError(f"{process.args} ended: {''.join(seen[-5:])}")
        threading.Thread(target=stderr.read, daemon=True).start()

    try:
        yield lines()
    finally:
        process.kill()
        process.wait(30)
