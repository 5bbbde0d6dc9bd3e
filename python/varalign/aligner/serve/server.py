"""The socket and the loop that answer requests."""

from __future__ import annotations

import os
import socket
from typing import Any

from varalign.aligner.serve.limits import AT_ONCE
from varalign.data.errors import DataError


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens; port 0: any that is free.

    It says that its protocol is TCP, as those of `socket.create_server` do not. Without that asyncio leaves Nagle's
    algorithm on for the connections, and each answer waits 40 ms for the client's delayed acknowledgement.

    Raises:
        DataError: there is no such port or host, or another program listens there.
    """
    if not 0 <= port < 1 << 16:
        raise DataError(f"--port {port}: wanted a number from 0 to 65535")
    listening = None
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listening = socket.socket(family, kind, protocol)
        if os.name == "posix":  # elsewhere it would let another program listen at the same port
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen()
        return listening
    except (OSError, UnicodeError) as error:
        if listening is not None:
            listening.close()
        said = getattr(error, "strerror", None) or error
        raise DataError(f"{host}, port {port}: cannot be listened at: {said}; name another --port or --host") from None


def server_of(app: Any) -> Any:
    """The server of an application; its `run([socket])` answers until a signal comes."""
    import uvicorn

    limits = {"limit_concurrency": AT_ONCE, "timeout_keep_alive": 5, "timeout_graceful_shutdown": 5}
    quiet = {"log_level": "warning", "access_log": False, "server_header": False, "proxy_headers": False}
    return uvicorn.Server(uvicorn.Config(app, **limits, **quiet))  # type: ignore[arg-type]
