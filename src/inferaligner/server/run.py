"""Runs the application until a signal stops it."""

from __future__ import annotations

import logging
import signal
import socket
from typing import Any

import uvicorn

from inferaligner.errors import InputError


def listen(host: str, port: int) -> socket.socket:
    """Opens a socket to serve on.

    Raises:
        InputError: the address cannot be used.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
        return socket.create_server((host, port), family=family, backlog=2048)
    except (OSError, OverflowError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(
            f"The server cannot listen on {host}, port {port} ({reason}). Give another --host or --port."
        ) from None


def serve_until_stopped(app: Any, listener: socket.socket, *, grace: int) -> None:
    """Serves until SIGINT or SIGTERM; then running requests have `grace` seconds to end."""
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s", level=logging.WARNING)
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=grace,
        lifespan="on",
        ws="none",
    )
    # uvicorn raises the signal once more after it has stopped; these handlers ignore it.
    before = {name: signal.signal(name, lambda *_: None) for name in (signal.SIGINT, signal.SIGTERM)}
    try:
        uvicorn.Server(config).run(sockets=[listener])
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)
