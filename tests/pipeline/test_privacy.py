"""Nothing phones home: no command opens a connection beyond this machine, and ONNX Runtime keeps no device id."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
EQUIPOISE = str(Path(sys.executable).with_name("equipoise"))
OURS = ("export", "client", "deploy", "model_repository", "tests")

SERVE_AND_PREDICT = """
import json, signal, subprocess, sys

equipoise, models, image, out = sys.argv[1:]
ports = [f"--{name}-port=0" for name in ("grpc", "http", "metrics", "health")]
serve = [equipoise, "serve", models, "--json", "--quiet", "--engine=embedded", *ports]
server = subprocess.Popen(serve, stdout=subprocess.PIPE, text=True)
url = json.loads(server.stdout.readline())["grpc"]
codes = [subprocess.run([equipoise, "predict", "pneumonia", image, "--out", out, "--url", url]).returncode]
server.send_signal(signal.SIGTERM)
codes.append(server.wait())
sys.exit(any(codes))
"""

LOAD_A_MODEL = """
import sys
import onnxruntime
onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
"""

Run = Callable[[Sequence[str]], list[str]]


@pytest.fixture
def home(tmp_path) -> Path:
    """An empty home, without a cache folder elsewhere."""
    folder = tmp_path / "home"
    folder.mkdir()
    return folder


@pytest.fixture
def environment(home) -> dict[str, str]:
    """As after a login: neither XDG folders nor anything that turns ONNX Runtime's telemetry off."""
    # Nor what tells ONNX Runtime that it runs in a build: there it keeps quiet by itself.
    inherited = {
        name: value for name, value in os.environ.items() if not name.startswith(("XDG_", "ORT_")) and name != "CI"
    }
    return {**inherited, "HOME": str(home)}


@pytest.fixture
def traced(tmp_path, environment) -> Run:
    """Runs a command, which has to succeed, and gives back every call by which it or a child of it named an address."""
    strace = shutil.which("strace")
    assert strace, "strace is not installed: run deploy/system-packages.sh as root"

    def run(command: Sequence[str]) -> list[str]:
        log = tmp_path / "calls"
        # In the kernel's filter, so that all other calls go on at their own speed.
        options = ["-f", "-qq", "--seccomp-bpf", "-e", "trace=connect,bind,sendto,sendmsg,sendmmsg", "-o", str(log)]
        done = subprocess.run(
            [strace, *options, *command], env=environment, capture_output=True, text=True, timeout=280
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return log.read_text(errors="replace").splitlines()

    return run


def strangers(calls: list[str]) -> list[str]:
    """The calls that name an address beyond this machine."""
    addressed = [call for call in calls if re.search(r"sin6?_addr|inet_addr|inet_pton|sin6?_port", call)]
    return [call for call in addressed if not re.search(r'"(127\.\d+\.\d+\.\d+|::1|::ffff:127\.\d+\.\d+\.\d+)"', call)]


def kept_by_onnxruntime(home: Path) -> list[Path]:
    """Files by which ONNX Runtime would recognise this machine."""
    return [path for path in home.rglob("*") if re.search(r"onnx|device.?id|microsoft", path.name, re.I)]


def test_a_stranger_would_be_seen(traced):
    """A datagram socket that is pointed at the outside, which sends nothing, shows; loopback does not."""
    script = """
import socket
for address in ("192.0.2.1", "127.0.0.1"):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((address, 9))
        except OSError:  # a machine without a network
            pass
with socket.socket() as probe:
    probe.bind(("0.0.0.0", 0))
with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
"""
    seen = strangers(traced([sys.executable, "-I", "-c", script]))
    assert len(seen) == 2
    assert "192.0.2.1" in seen[0] and "0.0.0.0" in seen[1]


def test_a_device_id_would_be_seen(environment, home):
    """ONNX Runtime as it comes does keep one; shown in a network namespace of its own, which reaches nobody."""
    isolated = ["unshare", "--map-root-user", "--net"]
    if shutil.which("unshare") is None or subprocess.run([*isolated, "true"], capture_output=True).returncode:
        pytest.skip("no network namespace here, and telemetry is not let loose on a network")
    model = REPOSITORY / "model_repository" / "pneumonia_sampler" / "1" / "model.onnx"
    command = [*isolated, sys.executable, "-c", LOAD_A_MODEL, str(model)]
    subprocess.run(command, env=environment, check=True, capture_output=True, timeout=60)
    assert kept_by_onnxruntime(home)
    shutil.rmtree(home)
    home.mkdir()
    subprocess.run(command, env={**environment, "ORT_DISABLE_TELEMETRY": "1"}, check=True, timeout=60)
    assert kept_by_onnxruntime(home) == []


@pytest.mark.slow
@pytest.mark.triton
def test_serving_and_asking_stays_on_this_machine(traced, home, tmp_path):
    """`serve` the three models, `predict` a file with its picture, stop: every address is loopback, the home clean."""
    image = tmp_path / "image.npy"
    np.save(image, np.random.default_rng(0).uniform(0, 255, (1, 28, 28)).astype(np.float32))
    arguments = [EQUIPOISE, str(REPOSITORY / "model_repository"), str(image), str(tmp_path / "out")]
    calls = traced([sys.executable, "-c", SERVE_AND_PREDICT, *arguments])
    assert list((tmp_path / "out").iterdir())
    for call, why in (("bind", "no server"), ("connect", "no client")):
        assert any(call in line and "127.0.0.1" in line for line in calls), f"strace saw {why}: this proves nothing"
    assert strangers(calls) == []
    assert kept_by_onnxruntime(home) == []


@pytest.mark.slow
def test_exporting_stays_on_this_machine(traced, home, tmp_path):
    """`export` captures, compiles, proves with ONNX Runtime and publishes without a single address."""
    networks, weights = "equipoise_lab.reference.networks", "export/equipoise_lab/reference/weights"
    command = [
        EQUIPOISE,
        "export",
        f"{networks}:pneumonia",
        "--weights",
        f"{REPOSITORY}/{weights}/pneumonia.safetensors",
    ]
    command += ["--name", "chest", "--task", "classification", "--input-shape", "1,28,28", "--classes", "normal,ill"]
    calls = traced([*command, "--into", str(tmp_path / "models")])
    assert (tmp_path / "models" / "chest_sampler" / "1" / "model.onnx").is_file()
    assert strangers(calls) == []
    assert kept_by_onnxruntime(home) == []


def test_onnxruntime_is_never_loaded_with_telemetry():
    """Every file that imports it sets ORT_DISABLE_TELEMETRY=1 in an earlier statement, whatever is imported first."""
    importers = {file: line for folder in OURS for file in (REPOSITORY / folder).rglob("*.py") if (line := _line(file))}
    names = {str(file.relative_to(REPOSITORY)) for file in importers}
    assert {"export/equipoise_export/graph/session.py", "model_repository/hippocampus_sampler/1/model.py"} <= names
    for file, line in importers.items():
        beforehand = 0 < _line_of_switch(file) < line or _switched_off_around(file)
        assert beforehand, f"{file.relative_to(REPOSITORY)}:{line} imports onnxruntime without that"


@pytest.mark.parametrize("file", ["Makefile", "deploy/Dockerfile", "deploy/equipoise_deploy/serving/container.py"])
def test_whatever_starts_a_process_switches_telemetry_off(file):
    """Native backends import no Python: the environment that they are started in has to say it."""
    assert re.search(r"ORT_DISABLE_TELEMETRY\W+1\b", (REPOSITORY / file).read_text(encoding="utf-8"))


def _line(file: Path) -> int:
    """Of the first import of onnxruntime, wherever it stands; 0: there is none."""
    lines = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
        if any(name.split(".")[0] == "onnxruntime" for name in names):
            lines.append(node.lineno)
    return min(lines, default=0)


def _switched_off_around(file: Path) -> bool:
    """Whether a package around it, or for tests a conftest, does it first: Python and pytest run those before it."""
    folders = [folder for folder in file.parents if folder.is_relative_to(REPOSITORY)]
    for around in (folder / name for folder in folders for name in ("__init__.py", "conftest.py")):
        if around.is_file() and 0 < _line_of_switch(around) < (_line(around) or sys.maxsize):
            return True
    return False


def _line_of_switch(file: Path) -> int:
    """Of `os.environ["ORT_DISABLE_TELEMETRY"] = "1"` as a statement of the module itself; 0: there is none."""
    wanted = ast.dump(ast.parse('os.environ["ORT_DISABLE_TELEMETRY"] = "1"').body[0])
    statements = ast.parse(file.read_text(encoding="utf-8")).body
    return next((statement.lineno for statement in statements if ast.dump(statement) == wanted), 0)
