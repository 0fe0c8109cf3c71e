"""When all that was accepted before a stop has been answered, by Triton's metrics and the models' own files."""

from __future__ import annotations

import os
import socket
import struct
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from equipoise_deploy.serving.guardian import STOPPING_FILE, Drain, in_flight

from ...support.asking import poll
from ...support.ports import closed_port, free_port


def metrics_page(queued: int, answered: int) -> str:
    """A metrics page about one model, and its sampler."""
    return (
        f'nv_inference_request_success{{model="m",version="1"}} {answered}\n'
        f'nv_inference_request_failure{{model="m",reason="OTHER",version="1"}} 0\n'
        f'nv_inference_pending_request_count{{model="m",version="1"}} {queued}\n'
        'nv_inference_pending_request_count{model="m_sampler",version="1"} 7\n'
    )


class Shown(Drain):
    """Looks at numbers that a test shows it, so that nothing depends on how late they come."""

    def __init__(self, flag: Path) -> None:
        self.now = 0.0
        super().__init__(0, flag, clock=lambda: self.now)
        self.looks: list[tuple[int, int, int]] = []

    def sees(self, *loads: tuple[int, int, int]) -> bool:
        """The two looks that it takes, or one that stays: queued, running, answered."""
        self.looks = [*(loads * 2)[:2]]
        return self.done()

    def _page(self) -> str:
        queued, _, answered = self.looks[0]
        return metrics_page(queued, answered)

    def _in_flight(self) -> dict[str, float]:
        return {"m": self.looks.pop(0)[1]}


@pytest.fixture
def drain(tmp_path) -> Shown:
    return Shown(tmp_path / STOPPING_FILE)


def test_waits_for_what_waits_and_runs(drain, tmp_path):
    """Neither a queue nor a request that is being answered may be cut off; then two quiet looks are enough."""
    assert not drain.sees((3, 4, 10))
    assert not drain.sees((0, 4, 13))
    assert not drain.sees((0, 1, 16))
    assert not drain.sees((0, 0, 17)), "a request may be between queue and process: one look is not enough"
    assert drain.sees((0, 0, 17))
    assert not (tmp_path / STOPPING_FILE).exists(), "nobody else asked, so nobody had to be refused"


def test_waits_for_what_is_between_queue_and_process(drain):
    """There it is counted nowhere, for as long as the machine stands still; a failure is an answer as well."""
    assert not drain.sees((2, 4, 10))
    assert not any(drain.sees((0, 4, 11)) for _ in range(9))
    assert not any(drain.sees((0, 0, 15)) for _ in range(9))
    assert not drain.sees((0, 1, 15))
    assert not drain.sees((0, 0, 16))
    assert drain.sees((0, 0, 16))


def test_a_count_that_never_comes_is_not_waited_for_until_the_deadline(drain):
    """Should a request end without being counted, the stop is late by a few seconds."""
    assert not drain.sees((1, 0, 10))
    assert not drain.sees((0, 0, 10))
    drain.now = 9.9
    assert not drain.sees((0, 0, 10))
    drain.now = 10.0
    assert [drain.sees((0, 0, 10)), drain.sees((0, 0, 10))] == [False, True]


def test_a_request_that_nobody_takes_up_is_not_waited_for(drain):
    """Its model is free and nothing moves: cancelled, it may stay in the queue's count. While one runs, others wait."""
    assert not drain.sees((3, 1, 10))
    drain.now = 100.0
    assert not drain.sees((3, 1, 10)), "a long request runs"
    assert not drain.sees((1, 0, 12))
    drain.now = 104.0
    assert not drain.sees((1, 0, 13)), "it moves"
    drain.now = 113.9
    assert not drain.sees((1, 0, 13))
    drain.now = 114.0
    assert [drain.sees((1, 0, 13)), drain.sees((1, 0, 13))] == [False, True]


def test_a_request_that_moves_on_during_a_look_is_one(drain):
    """Seen in two places it would be taken for two, and the second be waited for."""
    assert not drain.sees((1, 0, 10), (0, 1, 10))
    assert not drain.sees((0, 1, 10), (0, 0, 11))
    assert drain.sees((0, 0, 11))


def test_refuses_once_all_that_waited_has_begun(drain, tmp_path):
    """Under a load that never ends, new requests are refused when the old ones have begun, and the old ones finish."""
    flag = tmp_path / STOPPING_FILE
    assert not drain.sees((50, 4, 1000))
    assert not drain.sees((50, 4, 1049)) and not flag.exists()  # 49 more have begun: the last of those may not have
    assert not drain.sees((50, 4, 1070)) and flag.exists()
    assert not drain.sees((50, 1, 1074))
    assert not drain.sees((50, 0, 1075))  # what still waits came later and will be refused
    assert drain.sees((50, 0, 1075))


def test_reads_the_page_where_triton_tells_it(tmp_path):
    """Over HTTP; one that comes late is asked for again."""
    body = metrics_page(0, 3).encode()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        drain = Drain(server.server_port, tmp_path / STOPPING_FILE)
        poll(drain.done, "two looks at a server without a public model")
        running = [tmp_path / f"in_flight-{pid}-m" for pid in (7, 8)]
        for file, count in zip(running, (2, 0), strict=True):
            file.write_bytes(count.to_bytes(4, "little"))
        assert not any(drain.done() for _ in range(3)), "one of its processes is answering"
        running[0].write_bytes(bytes(4))
        poll(drain.done, "two looks at an idle server")
        server.shutdown()
        thread.join()


def test_requests_and_sampler_calls_of_living_processes_are_counted(tmp_path):
    """Over the processes of a model; one of an earlier release says its requests alone."""
    own = os.getpid()
    for process, model, content in (
        (own, "a", struct.pack("<II", 1, 3)),
        (os.getppid(), "a", struct.pack("<II", 2, 0)),
        (own, "b-c", struct.pack("<I", 5)),
        (2**22 + 1, "a", struct.pack("<II", 7, 7)),  # no process has this number
    ):
        (tmp_path / f"in_flight-{process}-{model}").write_bytes(content)
    assert in_flight(tmp_path) == {"a": (3, 3), "b-c": (5, 5)}
    assert in_flight(tmp_path / "gone") == {}


def test_does_not_wait_for_a_server_that_does_not_answer(tmp_path):
    """A Triton that has not bound its port, or hangs, accepts nothing that could be waited for."""
    with closed_port() as port:
        assert Drain(port, tmp_path / STOPPING_FILE).done()


def test_a_busy_triton_is_waited_for_and_one_that_has_gone_is_not(tmp_path):
    """Whose metrics come late is saturated, which is when most has been accepted."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", free_port()))
        silent.listen()
        drain = Drain(silent.getsockname()[1], tmp_path / STOPPING_FILE)
        assert not drain.done()
    assert drain.done()


def test_a_run_directory_that_is_gone_ends_no_drain(tmp_path):
    drain = Shown(tmp_path / "gone" / STOPPING_FILE)
    assert not drain.sees((50, 4, 1000))
    assert not drain.sees((50, 4, 1070))
    assert [drain.sees((50, 0, 1075)), drain.sees((50, 0, 1075))] == [False, True]
