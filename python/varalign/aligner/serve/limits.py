"""What a request may cost, who may ask, and how every answer is marked: around the routes of `app`.

A body is read whole, up to a size and a time, before any route sees it. A page of another site cannot read answers:
none is marked as open to other origins, and a name that was led to this machine (DNS rebinding) is refused by its
`Host`.
"""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import Response

from varalign.runs.json_text import json_text

MOST_BODY = 16 << 20
"""Bytes of a request."""
MOST_PIXELS = 50_000_000
"""Width times height of an image that is sent or shown."""
MOST_TEXT = 2000
"""Characters of a text."""
MOST_RESULTS = 1000
AT_ONCE = 64
"""Connections; more are answered with 503."""
BODY_SECONDS, ANSWER_SECONDS = 30.0, 60.0

_MARKS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cache-control", b"private, no-cache"),
)


class Json(Response):
    """A JSON answer in ASCII: names of files may hold bytes that no other encoding takes."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """The bytes of the answer."""
        return json_text(content).encode()


class Guard:
    """The limits, as an ASGI application around another one.

    Args:
        app: what answers.
        hosts: names by which this server may be asked for, in lower case; None: by any.
    """

    def __init__(self, app: Any, hosts: frozenset[str] | None) -> None:
        self._app, self._hosts = app, hosts

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer one request."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1003})
            return
        started = False

        async def marked(message: Any) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                message = {**message, "headers": [*message["headers"], *_MARKS]}
            await send(message)

        async def refuse(status: int, error: str) -> None:
            await Json({"error": error}, status)(scope, receive, marked)

        headers = dict(scope["headers"])
        host = headers.get(b"host", b"").decode("latin-1")
        if self._hosts is not None and _name(host) not in self._hosts:
            return await refuse(400, f"this server is not {host!r}: ask for it by {', '.join(sorted(self._hosts))}")
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or int(length) > MOST_BODY:
            return await refuse(
                413, f"the request has {length.decode('latin-1')} bytes; at most {MOST_BODY:,} are taken"
            )
        try:
            body = await asyncio.wait_for(_body(receive), BODY_SECONDS)
        except asyncio.TimeoutError:
            return await refuse(408, f"the request was not complete after {BODY_SECONDS:g} seconds")
        if body is None:
            return None  # the client is gone
        if len(body) > MOST_BODY:
            return await refuse(413, f"the request has more than the {MOST_BODY:,} bytes that are taken")
        waiting = [{"type": "http.request", "body": bytes(body), "more_body": False}]

        async def again() -> Any:
            return waiting.pop() if waiting else await receive()

        try:
            await asyncio.wait_for(self._app(scope, again, marked), ANSWER_SECONDS)
        except asyncio.TimeoutError:
            if not started:
                await refuse(503, f"no answer after {ANSWER_SECONDS:g} seconds; ask again later")
        return None


def _name(host: str) -> str:
    """The name in a `Host` header, without the port: `[::1]:80` → `[::1]`."""
    return (host[: host.find("]") + 1] if host.startswith("[") else host.partition(":")[0]).lower()


async def _body(receive: Any) -> bytearray | None:
    """The bytes of a request, no more than just above the limit; None where the client has gone."""
    body = bytearray()
    while len(body) <= MOST_BODY:
        message = await receive()
        if message["type"] != "http.request":
            return None
        body += message.get("body", b"")
        if not message.get("more_body", False):
            break
    return body
