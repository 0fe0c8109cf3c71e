"""HTTP/1.1 on a bound socket, by uvicorn: what the worklist page and the gateway's health and metrics share."""

from __future__ import annotations

import logging
import socket
from asyncio import BaseTransport

import uvicorn
from equipoise_client.errors import EquipoiseError
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

PATIENCE = 30.0
"""Seconds for a request to arrive, and for requests in progress at a stop."""


def listen(table: str, host: str, port: int) -> socket.socket:
    """The bound socket; `table` is the configuration's. Raises EquipoiseError where the port is taken."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise EquipoiseError(
            f"[{table}] cannot listen on {host}:{port}: {error.strerror}; is the port taken?"
        ) from None


def http_server(application: ASGIApp) -> uvicorn.Server:
    """To be run on a bound socket; `should_exit = True` ends it after the requests in progress."""
    return uvicorn.Server(
        uvicorn.Config(
            application,
            http=_Connection,
            ws="none",
            loop="asyncio",
            lifespan="off",
            proxy_headers=False,  # who is a trusted proxy is judged by the address of the connection itself
            server_header=False,
            headers=[("Connection", "close")],  # a kept connection could send half a request, and stay
            log_config=None,
            log_level=logging.CRITICAL + 1,  # its tracebacks quote values, which may be a patient's
            access_log=False,
            timeout_graceful_shutdown=int(PATIENCE),
        )
    )


class _Connection(H11Protocol):
    """Closes a connection on which no request arrives: uvicorn alone would wait for ever."""

    def connection_made(self, transport: BaseTransport) -> None:
        super().connection_made(transport)  # type: ignore[arg-type]
        self.loop.call_later(PATIENCE, self._close_if_silent)

    def _close_if_silent(self) -> None:
        if self.cycle is None:
            self.transport.abort()
