"""What a request must be before anything is done for it: the key, the Host, the rate, the size."""

from __future__ import annotations

import hmac
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from fastapi import Request
from fastapi.responses import JSONResponse, Response

LOOPBACK = ("127.0.0.1", "localhost", "::1")
PAGE_POLICY = (
    "default-src 'self'; img-src 'self' data: blob:; media-src 'self' blob:; style-src 'self'; script-src 'self'; "
    "connect-src 'self'; object-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
OPEN_PATHS = ("/", "/healthz", "/favicon.ico")  # and /static/: the page itself asks for the key


@dataclass(frozen=True)
class Limits:
    """What one server takes."""

    upload_bytes: int = 512 * 2**20
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


@dataclass(frozen=True)
class Guard:
    """Middleware in front of every route."""

    key: str | None
    hosts: tuple[str, ...]  # names this server answers to; empty takes any
    limits: Limits

    async def __call__(self, request: Request, go_on: Callable[[Request], Awaitable[Response]]) -> Response:
        refused = self.refusal(request)
        response = refused if refused is not None else await go_on(request)
        response.headers["Content-Security-Policy"] = PAGE_POLICY
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.headers["Referrer-Policy"] = "no-referrer"
        response.headers["Cross-Origin-Resource-Policy"] = "same-origin"
        return response

    def refusal(self, request: Request) -> JSONResponse | None:
        """Why a request is not served; None when it is."""
        if self.hosts and host_of(request.headers.get("host", "")) not in self.hosts:
            return error(421, "this server does not answer to that Host")
        origin = request.headers.get("origin", "")  # a page of another site may send forms here, but not pass as ours
        if origin and origin.partition("://")[2] != request.headers.get("host", ""):
            return error(403, "requests from pages of other sites are not served")
        length = request.headers.get("content-length", "0")
        if not length.isdigit() or int(length) > self.limits.upload_bytes:
            return error(413, f"the body is larger than {self.limits.upload_bytes} bytes")
        path = request.url.path
        if self.key is None or path in OPEN_PATHS or path.startswith("/static/"):
            return None
        given = request.headers.get("authorization", "").removeprefix("Bearer ").strip()
        given = given or request.cookies.get("ltx_key", "")
        if not hmac.compare_digest(given.encode(), self.key.encode()):
            return error(401, "the key is missing or wrong; send 'Authorization: Bearer KEY'", "authentication_error")
        return None


def host_of(header: str) -> str:
    """The name in a Host header, without its port."""
    if header.startswith("["):
        return header[1:].partition("]")[0].lower()
    return header.partition(":")[0].lower()
