"""A request to stop is carried out, at whatever moment it comes."""

from __future__ import annotations

import os
import signal
import sys

import pytest
from equipoise_deploy.serving import serve as serving
from equipoise_deploy.serving.supervisor import Plan


class Finalised:
    """What runs while a signal arrives: Python drops what is raised in a finaliser."""

    def __del__(self) -> None:
        os.kill(os.getpid(), signal.SIGTERM)


class Watched:
    """A supervisor that sees a signal come at the worst moment, and never anything else."""

    calls: list[str]

    def __init__(self, *arguments: object) -> None:
        self.calls, self.checks, self.left_out = Watched.calls, 0, dict[str, str]()
        self.server = type("Server", (), {"grpc_url": "", "http_url": "", "metrics_url": ""})

    def start(self) -> tuple[()]:
        return ()

    def check(self) -> None:
        self.checks += 1
        assert self.checks < 3, "it goes on serving"
        Finalised()

    def drain(self, reason: str) -> None:
        self.calls.append("drain")

    def stop(self, reason: str) -> None:
        self.calls.append("stop")


def test_a_stop_that_comes_while_python_drops_exceptions_is_not_lost(monkeypatch, tmp_path):
    """The signal's exception is gone; the loop finds the request, drains and stops."""
    dropped = []
    monkeypatch.setattr(sys, "unraisablehook", lambda found: dropped.append(found.exc_type))
    monkeypatch.setattr(serving, "Supervisor", Watched)
    Watched.calls = []
    serving.serve(Plan(tmp_path), health_port=0)
    assert dropped == [serving.Stopped] and Watched.calls == ["drain", "stop"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_is_an_exception_and_a_note(number):
    with pytest.raises(serving.Stopped), serving.signals() as pending:
        try:
            os.kill(os.getpid(), number)
        finally:
            assert pending.stop == number


@pytest.fixture
def dropped(monkeypatch) -> list[type]:
    """What Python dropped."""
    kinds: list[type] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda found: kinds.append(found.exc_type))
    return kinds


def test_after_a_dropped_stop_the_next_signal_raises_again(dropped):
    """Where no loop looks at the note; once it has arrived, no further one disturbs the clean-up."""
    with pytest.raises(serving.Stopped) as stopped, serving.signals() as pending:
        Finalised()
        assert dropped == [serving.Stopped] and pending.stop == signal.SIGTERM
        Finalised()
        assert len(dropped) == 2
        try:
            os.kill(os.getpid(), signal.SIGINT)
        finally:
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                os.kill(os.getpid(), number)
    assert stopped.value.number == signal.SIGINT and not pending.reload


@pytest.mark.parametrize("ready", [False, True])
def test_a_dropped_stop_ends_a_container(monkeypatch, tmp_path, dropped, ready):
    """While it is awaited, and while it serves."""

    def answers(port: int) -> bool:
        if not ready:
            Finalised()
        return ready

    monkeypatch.setattr(serving, "public_models", lambda repository: ("m",))
    monkeypatch.setattr(serving, "container_command", lambda *_: ["sleep", "600"])
    monkeypatch.setattr(serving, "answers_ready", answers)
    monkeypatch.setattr(serving, "check_readiness", lambda *_: ())
    serving.serve_in_container("sleep", "", tmp_path, on_ready=lambda listening: Finalised() and None)
    assert dropped == [serving.Stopped]
