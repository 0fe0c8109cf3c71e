"""A server starts whole or says why not, and leaves nothing behind, however it ends."""

from __future__ import annotations

import json
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as triton
from equipoise_deploy.errors import StartError
from equipoise_deploy.ports import Ports
from equipoise_deploy.serving.engine import find_engine
from equipoise_deploy.serving.readiness import check_readiness
from equipoise_deploy.serving.server import TritonServer, triton_command, triton_environment

pytestmark = pytest.mark.triton

SERVE = "import typer; from equipoise_deploy.serving.command import serve_command; typer.run(serve_command)"
ANY_PORTS = ("--engine=embedded", "--grpc-port=0", "--http-port=0", "--metrics-port=0", "--health-port=0")


def _image() -> triton.InferInput:
    return triton.InferInput("image", [1, 1, 4, 4], "FP32").set_data_from_numpy(
        np.arange(16, dtype=np.float32).reshape(1, 1, 4, 4)
    )


def _serve(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", SERVE, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_serves_and_leaves_no_process_no_shared_memory_and_no_directory(repository, temporary, traces):
    """Ready by synthetic inference; after `stop` nothing of it exists, and the repository was not written."""
    before = sorted(repository.rglob("*"))
    with TritonServer(repository, ports=Ports(0, 0, 0)) as server:
        (probe,) = check_readiness(server.grpc_url, server.models)
        assert probe.model == "tinyseg" and probe.variance > 0
        assert traces(temporary, os.getpid())
    assert not traces(temporary, os.getpid())
    assert sorted(repository.rglob("*")) == before


def test_requests_in_flight_are_answered_before_it_stops(repository, temporary):
    """What was accepted is not lost by a stop: each request is answered, or was refused and says so."""
    answers: list[Exception | None] = []
    with TritonServer(repository, ports=Ports(0, 0, 0)) as server:
        check_readiness(server.grpc_url, server.models)
        client = triton.InferenceServerClient(server.grpc_url)
        done, accepted = threading.Semaphore(0), threading.Event()

        def receive(result, error) -> None:
            answers.append(error)
            accepted.set()
            done.release()

        for _ in range(40):
            client.async_infer("tinyseg", [_image()], receive)
        accepted.wait(30)
        server.stop()
        for _ in range(40):
            assert done.acquire(timeout=30)
    refused = [str(error) for error in answers if error is not None]
    assert len(refused) < 40
    assert all("UNAVAILABLE" in message for message in refused), refused


@pytest.mark.slow
def test_killed_caller_takes_everything_with_it(repository, temporary, traces):
    """Even SIGKILL, which no handler sees, leaves neither process nor shared memory nor directory."""
    caller = _serve(str(repository), "--json", *ANY_PORTS)
    assert caller.stdout is not None
    assert json.loads(caller.stdout.readline())["probes"]
    (guardian,) = [int(p.split()[0]) for p in traces(temporary, caller.pid).processes if "guardian.py" in p]
    ended = os.pidfd_open(guardian)
    caller.kill()
    caller.communicate()
    _wait_for(ended)
    assert not traces(temporary, caller.pid)


def _wait_for(process: int) -> None:
    readable, _, _ = select.select([process], [], [], 60)
    assert readable, "it still runs"
    os.close(process)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_command_ends_with_zero_on_a_signal_even_if_it_is_repeated(repository, temporary, traces, number):
    """The first signal stops it in order; an impatient second one does not disturb the cleaning up."""
    command = _serve(str(repository), "--json", *ANY_PORTS)
    assert command.stdout is not None
    listening = json.loads(command.stdout.readline())
    assert triton.InferenceServerClient(listening["grpc"]).is_server_ready()
    command.send_signal(number)
    command.send_signal(number)
    _, log = command.communicate(timeout=60)
    assert command.returncode == 0, log
    assert not traces(temporary, command.pid)


def test_signal_during_the_start_leaves_nothing(repository, temporary, traces):
    """A start that is given up is cleaned up as well."""
    command = _serve(str(repository), *ANY_PORTS)
    assert command.stderr is not None
    assert "samplers run on" in command.stderr.readline()
    command.stderr.readline()  # Triton's first line: it runs, its models do not yet
    command.send_signal(signal.SIGTERM)
    command.communicate(timeout=60)
    assert command.returncode == 0
    assert not traces(temporary, command.pid)


def test_model_that_does_not_load_is_named_with_its_reason(repository, temporary, tmp_path, traces):
    """Triton's own words reach the operator: which model, and what went wrong in it."""
    broken = tmp_path / "models"
    shutil.copytree(repository, broken)
    (broken / "tinyseg_sampler/1/model.onnx").write_bytes(b"not a model")
    with pytest.raises(StartError, match=r"(?s)tinyseg_sampler.*model\.onnx"):
        TritonServer(broken, ports=Ports(0, 0, 0)).start()
    assert not traces(temporary, os.getpid())


ABORTS = """#!/bin/sh
echo "$$" >> {folder}/started
if [ "$(wc -l < {folder}/started)" -le {times} ]; then
    echo "terminate called after throwing an instance of '{error}'" >&2
    {ends}
fi
exec {binary} "$@"
"""


def _aborting(monkeypatch, folder: Path, times: int, error: str, ends: str = "kill -ABRT $$") -> Path:
    """A Triton that ends so often before it starts at last; the file that tells how often it was started."""
    engine = find_engine(os.environ)
    script = folder / "tritonserver"
    script.write_text(ABORTS.format(folder=folder, times=times, error=error, ends=ends, binary=engine.binary))
    script.chmod(0o755)
    monkeypatch.setenv("EQUIPOISE_TRITON_BINARY", str(script))
    monkeypatch.setenv("EQUIPOISE_TRITON_BACKENDS", str(engine.backends[0]))
    return folder / "started"


def _by_chance(log: list[str]) -> int:
    """How many more attempts there may be after one that said this: one where a chance ended it, else none."""
    return int(any("terminate called" in line or "already in use" in line for line in log))


def test_a_race_of_tritons_own_does_not_end_the_start(repository, temporary, tmp_path, monkeypatch, traces):
    """Its Python backend aborts now and then while it starts; the next attempt serves."""
    started = _aborting(monkeypatch, tmp_path, 1, "boost::interprocess::lock_exception")
    log: list[str] = []
    with TritonServer(repository, ports=Ports(0, 0, 0), on_log=log.append) as server:
        check_readiness(server.grpc_url, server.models)
    first = next(number for number, line in enumerate(log) if "lock_exception" in line)
    # A third one only where the real Triton of the second met with such a chance as well, and said so.
    assert len(started.read_text().splitlines()) == 2 + _by_chance(log[first + 1 :])
    assert not traces(temporary, os.getpid())


@pytest.mark.parametrize("name", ["grpc", "http", "metrics"])
def test_a_port_that_is_taken_before_triton_opens_it_does_not_end_the_start(repository, temporary, traces, name):
    """Picked free ones are others' a moment later; of the metrics' it tells after it has said that it is ready."""
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        tried, log, begun = [], [], []

        class Taken(Ports):
            def chosen(self) -> Ports:
                tried.append(super().chosen())
                begun.append(len(log))
                return replace(tried[0], **{name: holder.getsockname()[1]}) if len(tried) == 1 else tried[-1]

        with TritonServer(repository, ports=Taken(0, 0, 0), on_log=log.append) as server:
            check_readiness(server.grpc_url, server.models)
            assert len(tried) == 2 + _by_chance(log[begun[1] :]) and server.ports == tried[-1]
    assert not traces(temporary, os.getpid())


@pytest.mark.parametrize(("ends", "attempts"), [("exit 1", 1), ("kill -ABRT $$", 5), ("kill -SEGV $$", 5)])
def test_a_triton_that_never_starts_is_an_error_with_its_words(
    repository, temporary, tmp_path, monkeypatch, traces, ends, attempts
):
    """What crashes is not tried for ever, and what says by itself that it cannot start is not tried again."""
    started = _aborting(monkeypatch, tmp_path, 9, "some_exception", ends)
    with pytest.raises(StartError, match="some_exception"):
        TritonServer(repository, ports=Ports(0, 0, 0)).start()
    assert len(started.read_text().splitlines()) == attempts
    assert not traces(temporary, os.getpid())


def test_command_says_what_is_wrong_and_ends_with_one(tmp_path):
    """No repository: one line that says what to give, no traceback."""
    command = _serve(str(tmp_path / "absent"), *ANY_PORTS)
    _, log = command.communicate(timeout=60)
    assert command.returncode == 1
    assert "is not a folder" in log and "Traceback" not in log


def test_server_that_dies_and_may_not_be_restarted_ends_the_command(repository, temporary, traces):
    """Nobody is left believing in a server that has gone; the exit code says that it was given up."""
    command = _serve(str(repository), "--json", "--restarts=0", *ANY_PORTS)
    assert command.stdout is not None
    command.stdout.readline()
    binary = str(find_engine({}).binary)
    running = [p for p in traces(temporary, command.pid).processes if p.split()[1] == binary]
    os.kill(int(running[0].split()[0]), signal.SIGKILL)
    _, log = command.communicate(timeout=60)
    assert command.returncode == 3
    assert re.search("has died|ended by itself", log), log  # its process may be seen first, or its exit code
    assert not traces(temporary, command.pid)


def test_everything_listens_on_loopback_and_nothing_phones_home():
    """The wheel's server is old: it must not be reached from elsewhere; ONNX Runtime must not report."""
    command = triton_command(find_engine({}), Path("/models"), Path("/backends"), Ports(), "x_", 30)
    addresses = [option for option in command if "-address=" in option]
    assert sorted(addresses) == [f"--{which}-address=127.0.0.1" for which in ("grpc", "http", "metrics")]
    assert "--model-config-name=embedded" in command
    environment = triton_environment({"PYTHONPATH": "/elsewhere", "PATH": "/bin", "ORT_DISABLE_TELEMETRY": "0"})
    assert environment["ORT_DISABLE_TELEMETRY"] == "1"
    assert environment["NVIDIA_TF32_OVERRIDE"] == "0"
    assert environment["PATH"].split(":")[0] == str(Path(sys.prefix) / "bin")
    assert "PYTHONPATH" not in environment
