"""Checks of a request before anything is done for it: the key, the Host, the rate, the size."""

from __future__ import annotations

import hmac
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from urllib.parse import unquote

from fastapi.responses import JSONResponse
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOOPBACK = ("127.0.0.1", "localhost", "::1")
PAGE_POLICY = (
    "default-src 'self'; img-src 'self' data: blob:; media-src 'self' blob:; style-src 'self'; script-src 'self'; "
    "connect-src 'self'; object-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": PAGE_POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}
OPEN_PATHS = ("/", "/healthz", "/favicon.ico")  # and /static/: the page itself asks for the key


@dataclass(frozen=True)
class Limits:
    """Limits of one server."""

    upload_bytes: int = 512 * 2**20
    body_bytes: int = 2**20  # of JSON
    uploads_per_request: int = 16
    creates_per_minute: int = 120
    queued_jobs: int = 1000
    quota_bytes: int = 20 * 2**30


def error(status: int, message: str, kind: str = "invalid_request_error", code: str | None = None) -> JSONResponse:
    """An error in OpenAI's form."""
    return JSONResponse({"error": {"message": message, "type": kind, "param": None, "code": code}}, status)


@dataclass
class RateLimit:
    """At most ``per_minute`` of something from each client, by a bucket that refills; the latest thousand clients."""

    per_minute: int
    buckets: OrderedDict[str, tuple[float, float]] = field(default_factory=OrderedDict)

    def allows(self, client: str) -> bool:
        now = time.monotonic()
        tokens, since = self.buckets.pop(client, (float(self.per_minute), now))
        tokens = min(self.per_minute, tokens + (now - since) * self.per_minute / 60)
        self.buckets[client] = (tokens - 1 if tokens >= 1 else tokens, now)
        while len(self.buckets) > 1000:
            self.buckets.popitem(last=False)
        return tokens >= 1


class Guard:
    """Middleware in front of every route. ``hosts`` are the names this server answers to; empty takes any."""

    def __init__(self, app: ASGIApp, key: str | None, hosts: Sequence[str], limits: Limits) -> None:
        self.app, self.key, self.hosts, self.limits = app, key, hosts, limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request, taken = Request(scope), 0
        most = self.most_bytes(request)

        async def counted() -> Message:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > most:  # a body may be longer than was said, or come without a length
                raise HTTPException(413, f"the body is larger than {most} bytes")
            return message

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        app = self.refusal(request) or self.app
        await app(scope, counted, with_headers)

    def most_bytes(self, request: Request) -> int:
        """Greatest length of a body: files in forms may be large."""
        is_form = request.headers.get("content-type", "").startswith("multipart/form-data")
        return self.limits.upload_bytes if is_form else self.limits.body_bytes

    def refusal(self, request: Request) -> JSONResponse | None:
        """Why a request is not served; None when it is."""
        if self.hosts and host_of(request.headers.get("host", "")) not in self.hosts:
            return error(421, "this server does not answer to that Host")
        origin = request.headers.get("origin", "")  # a page of another site may send forms here, but not pass as ours
        if origin and origin.partition("://")[2] != request.headers.get("host", ""):
            return error(403, "requests from pages of other sites are not served")
        length, most = request.headers.get("content-length", "0"), self.most_bytes(request)
        if not length.isdecimal() or int(length[:20]) > most:
            return error(413, f"the body is larger than {most} bytes")
        path = request.url.path
        if self.key is None or path in OPEN_PATHS or path.startswith("/static/"):
            return None
        given = request.headers.get("authorization", "").removeprefix("Bearer ").strip()
        given = given or unquote(request.cookies.get("ltx_key", ""))
        if not hmac.compare_digest(given.encode(), self.key.encode()):
            return error(401, "the key is missing or wrong; send 'Authorization: Bearer KEY'", "authentication_error")
        return None


def host_of(header: str) -> str:
    """The name in a Host header, without its port."""
    if header.startswith("["):
        return header[1:].partition("]")[0].lower()
    return header.partition(":")[0].lower()
