"""The compose files, as far as they can be checked without an engine: by the specification's schema, by reading."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from equipoise_deploy.serving.command import serve_command
from typer import Typer
from typer.main import get_command
from typer.testing import CliRunner

DEPLOY = Path(__file__).parents[2] / "deploy"
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
SERVE = Typer()
SERVE.command()(serve_command)
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
TRIAL = {name for name, own in SERVICES.items() if own.get("profiles") == ["trial"]}
"""Never with patients' data, and as their images want to be run."""


def _plain(value: str) -> str:
    """With the defaults of `${NAME:-default}`."""
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", value)


def _schema(path: Path) -> subprocess.CompletedProcess[str]:
    checker = Path(sys.prefix) / "bin" / "check-jsonschema"
    return subprocess.run([checker, "--builtin-schema", "vendor.compose-spec", path], capture_output=True, text=True)


def test_specification_takes_it():
    """The schema of compose-spec, as check-jsonschema carries it."""
    done = _schema(DEPLOY / "compose.yaml")
    assert done.returncode == 0, done.stdout + done.stderr


def test_specification_would_refuse_a_misspelt_key(tmp_path):
    """The test above can fail."""
    text = (DEPLOY / "compose.yaml").read_text()
    (tmp_path / "compose.yaml").write_text(text.replace("mem_limit: 1g", "memory_limit: 1g", 1))
    assert _schema(tmp_path / "compose.yaml").returncode != 0


@pytest.mark.parametrize("service", SERVICES)
def test_every_port_is_published_on_loopback(service):
    """Unless EQUIPOISE_PUBLISH says otherwise; and no image is whatever is newest."""
    own = SERVICES[service]
    for port in own.get("ports", ()):
        assert _plain(port).startswith("127.0.0.1:"), port
    assert own["security_opt"] == ["no-new-privileges:true"]
    assert "build" in own or (":" in own["image"] and ":latest" not in own["image"])


@pytest.mark.parametrize("service", sorted(SERVICES.keys() - TRIAL))
def test_every_service_is_confined(service):
    """Read-only, no capabilities, a memory limit, images that can be pinned."""
    own = SERVICES[service]
    assert own["read_only"] and own["cap_drop"] == ["ALL"]
    assert own["mem_limit"]
    assert "build" in own or "_DIGEST" in own["image"]


def test_triton_cannot_leave_and_nobody_reaches_it_but_through_the_proxy():
    """An internal network, no published port; the same on GPU and CPU."""
    assert COMPOSE["networks"]["inside"]["internal"]
    for name in ("triton", "triton-cpu"):
        own = SERVICES[name]
        assert set(own["networks"]) == {"inside"} and not own.get("ports")
        assert own["shm_size"] == "2gb" and own["user"] == "1000:1000"
        assert own["networks"]["inside"]["aliases"] == [SERVICES["haproxy"]["environment"]["EQUIPOISE_REPLICAS"]]
        assert "--allow-client-shm=false" in own["environment"]["EQUIPOISE_TRITON_OPTIONS"]
    (device,) = SERVICES["triton"]["deploy"]["resources"]["reservations"]["devices"]
    assert device["capabilities"] == ["gpu"]
    assert SERVICES["triton-cpu"]["environment"]["EQUIPOISE_TRITON_CONFIG"] == "cpu"
    assert "deploy" not in SERVICES["triton-cpu"]


def test_what_is_mounted_is_there_and_read_only():
    """Every file of ours that a service mounts exists; only volumes can be written."""
    for name, own in SERVICES.items():
        for mount in own.get("volumes", ()):
            source, target, *mode = _plain(mount).split(":")
            if source.startswith("."):
                assert mode == ["ro"], f"{name}: {target}"
                made_later = source in ("./certs", "../build/viewer/package/dist")
                assert made_later or (DEPLOY / source).exists(), source
            else:
                assert source in COMPOSE["volumes"], source


def test_the_server_can_obey_the_alarms_of_the_gateways_log():
    """Where that is asked for: it sees the log, read-only, where the gateway may write it, and nothing else of it."""
    known = CliRunner().invoke(SERVE, ["--help"], env={"COLUMNS": "200"}).output
    folder = "/var/lib/equipoise-audit"
    for name in ("triton", "triton-cpu"):
        own = SERVICES[name]
        assert own["volumes"] == [f"audit:{folder}:ro"]
        (variable,) = [each for each in own["environment"] if "ALARM" in each]
        assert variable in known and _plain(own["environment"][variable]) == ""
    assert f"audit:{folder}" in SERVICES["gateway"]["volumes"]
    configured = (DEPLOY / "gateway" / "gateway.toml").read_text()
    assert f'# audit = "{folder}/decisions.jsonl"' in configured and "close_on_alarm = false" in configured
    for name in ("Dockerfile", "gateway.Dockerfile"):  # whichever container mounts the volume first
        assert f"--mode=0600 /dev/null {folder}/decisions.jsonl" in (DEPLOY / name).read_text()


def test_podman_compose_takes_it():
    """It asks for every network to be declared, `default` too, and reads paths of an included file from elsewhere."""
    used = {network for own in SERVICES.values() for network in own.get("networks", ["default"])}
    assert used <= COMPOSE["networks"].keys() and "include" not in COMPOSE


def test_prometheus_looks_at_the_services_by_their_names():
    """Its targets are services of the file, at ports that they listen on; Grafana asks this Prometheus."""
    ports = {"triton": 8002, "haproxy": None, "gateway": 8046}
    jobs = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())["scrape_configs"]
    (replicas,) = [each for job in jobs for each in job.get("dns_sd_configs", ())]
    assert replicas["type"] == "A"  # an address for each replica: one name would be scraped at random
    found = {(name, replicas["port"]) for name in replicas["names"]}
    for file in (DEPLOY / "prometheus" / "targets-compose").glob("*.yml"):
        assert (DEPLOY / "prometheus" / "targets" / file.name).is_file()
        for group in yaml.safe_load(file.read_text()):
            for target in group["targets"]:
                host, _, port = target.partition(":")
                assert host in SERVICES and ports[host] in (None, int(port))
                found.add((host, int(port)))
    assert {("haproxy", 8404), ("haproxy", 8443), ("triton", 8002), ("gateway", 8046)} == found
    environment = SERVICES["haproxy"]["environment"]
    assert environment["EQUIPOISE_STATS"] == ":8404" and environment["EQUIPOISE_PROXY"] == ":8443"
    source = yaml.safe_load((DEPLOY / "grafana/provisioning/datasources/prometheus.yml").read_text())["datasources"][0]
    assert source["url"] == "http://prometheus:9090"


def test_nothing_phones_home():
    """Grafana asks nobody for updates, news or pictures; the collector tells nobody of itself."""
    environment = SERVICES["grafana"]["environment"]
    off = ("REPORTING_ENABLED", "CHECK_FOR_UPDATES", "CHECK_FOR_PLUGIN_UPDATES", "NEWS_FEED_ENABLED")
    for name in off:
        (value,) = [value for key, value in environment.items() if key.endswith(name)]
        assert value == "false"
    assert environment["GF_SECURITY_DISABLE_GRAVATAR"] == "true"
    collector = yaml.safe_load((DEPLOY / "tracing" / "collector.yaml").read_text())
    assert collector["service"]["telemetry"]["metrics"]["level"] == "none"


def test_gateway_of_the_compose_file_can_be_started(tmp_path):
    """Its configuration and rules are ones that `equipoise gateway --check` takes."""
    for name in ("gateway.toml", "rules.toml"):
        (tmp_path / name).write_text((DEPLOY / "gateway" / name).read_text())
    done = subprocess.run(
        [sys.executable, "-m", "equipoise_client.cli.main", "gateway", tmp_path / "gateway.toml", "--check"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(("value", "found"), [("", None), ("/log.jsonl", Path("/log.jsonl"))])
def test_an_empty_variable_asks_for_nothing(monkeypatch, value, found):
    """As compose passes it by default."""
    monkeypatch.setenv("EQUIPOISE_CLOSE_ON_ALARM", value)
    assert get_command(SERVE).make_context("serve", ["models"]).params["close_on_alarm"] == found
