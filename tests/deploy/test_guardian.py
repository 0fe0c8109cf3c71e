"""When all that was accepted before a stop has been answered, as far as Triton's metrics tell."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from equipoise_deploy.guardian import STOPPING_FILE, Drain


@pytest.fixture
def page() -> Iterator[tuple[int, Callable[..., None]]]:
    """A metrics page on a port of its own, and how to say what it shows of one model."""
    shown = [""]

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = shown[0].encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    def show(queued: int, running: int, answered: int) -> None:
        shown[0] = (
            f'equipoise_in_flight{{model="m"}} {running}\n'
            f'nv_inference_pending_request_count{{model="m",version="1"}} {queued}\n'
            f'nv_inference_request_success{{model="m",version="1"}} {answered}\n'
            f'nv_inference_request_failure{{model="m",reason="OTHER",version="1"}} 0\n'
            'nv_inference_pending_request_count{model="m_sampler",version="1"} 7\n'
        )

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server.server_port, show
    server.shutdown()
    thread.join()
    server.server_close()


def test_waits_for_what_waits_and_runs(page, tmp_path):
    """Neither a queue nor a request that is being answered may be cut off; then two quiet looks are enough."""
    port, show = page
    drain = Drain(port, tmp_path / STOPPING_FILE)
    for queued, running, answered in ((3, 4, 10), (0, 4, 13), (0, 1, 16)):
        show(queued, running, answered)
        assert not drain.done()
    show(0, 0, 17)
    assert not drain.done(), "a request may be between queue and process: one look does not tell"
    assert drain.done()
    assert not (tmp_path / STOPPING_FILE).exists(), "nobody else asked, so nobody had to be refused"


def test_refuses_once_all_that_waited_has_begun(page, tmp_path):
    """Under a load that never ends, new requests are refused when the old ones have begun, and the old ones finish."""
    port, show = page
    flag = Path(tmp_path / STOPPING_FILE)
    drain = Drain(port, flag)
    show(50, 4, 1000)
    assert not drain.done()
    show(50, 4, 1049)  # 49 more have begun: the last of those that waited may not have
    assert not drain.done() and not flag.exists()
    show(50, 4, 1070)
    assert not drain.done() and flag.exists()
    show(50, 1, 1074)
    assert not drain.done()
    show(50, 0, 1075)  # what still waits came later and will be refused
    assert not drain.done()
    assert drain.done()


def test_does_not_wait_for_a_server_that_does_not_answer(tmp_path):
    """A Triton that has not bound its port, or hangs, accepts nothing that could be waited for."""
    assert Drain(1, tmp_path / STOPPING_FILE).done()


def test_a_busy_triton_is_waited_for_and_one_that_has_gone_is_not(tmp_path):
    """Whose metrics come late is saturated, which is when most has been accepted."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        drain = Drain(silent.getsockname()[1], tmp_path / STOPPING_FILE)
        assert not drain.done()
    assert drain.done()


def test_a_run_directory_that_is_gone_ends_no_drain(page, tmp_path):
    port, show = page
    drain = Drain(port, tmp_path / "gone" / STOPPING_FILE)
    for answered in (1000, 1070):
        show(50, 4, answered)
        assert not drain.done()
    show(50, 0, 1075)
    assert [drain.done(), drain.done()] == [False, True]
