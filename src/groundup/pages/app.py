"""The local web app: served to this machine alone, and safe from the other pages that its browser has open.

A page elsewhere can make the browser ask `http://localhost:…` for anything. So whoever asks must have typed a name of
this machine (no DNS rebinding), ask from our own page (no cross-site requests), and ask only to read. Answers carry a
content security policy that lets nothing run or load but the files of this package.
"""

import contextlib
import errno
import socket
from collections.abc import Sequence
from functools import partial
from urllib.parse import urlsplit

import uvicorn
from fastapi import FastAPI, Request, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from groundup.errors import ResourceError
from groundup.pages.assets import asset

LOOPBACK = ("127.0.0.1", "::1")
OUR_NAMES = ("localhost", *LOOPBACK)
MAX_URL_BYTES = 4096
MAX_HEADER_BYTES = 16_384
MAX_REQUESTS = 64
"""Requests served at one time; further ones are answered with 503."""
TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}


def make_app(page: str, assets: Sequence[str]) -> FastAPI:
    """An app that serves `page`, HTML, at `/` and files of this package under `/assets/`; callers add routes."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    # Read once, before anybody asks: no path from a URL ever reaches the file system.
    contents = {"/": (page, "html")} | {f"/assets/{name}": (asset(name), name.rpartition(".")[2]) for name in assets}
    for path, (content, suffix) in contents.items():
        app.add_route(path, partial(_send, content, TYPES[suffix]), methods=["GET", "HEAD"])
    app.add_middleware(Guarded)
    return app


async def _send(content: str, media_type: str, request: Request) -> Response:
    return Response(content, media_type=media_type)


class Guarded:
    """Refuses what only an attack or a mistake would ask, and puts our headers on every answer."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return

        async def send_with_headers(message):  # type: ignore[no-untyped-def]
            if message["type"] == "http.response.start":
                ours = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
                message["headers"] = [*message.get("headers", ()), *ours]
            await send(message)

        refused = refusal(scope)
        answer = self._app if refused is None else Response(refused[1] + "\n", refused[0], media_type="text/plain")
        await answer(scope, receive, send_with_headers)


def refusal(scope: Scope) -> tuple[int, str] | None:
    """Status and reason with which a request is refused; None if it is answered."""
    request = Request(scope)
    headers, scheme = request.headers, scope.get("scheme", "http")
    host, origin = headers.get("host", ""), headers.get("origin")
    from_elsewhere = headers.get("sec-fetch-site") in ("cross-site", "same-site")
    n_header_bytes = sum(len(name) + len(value) for name, value in headers.raw)
    refusals = (
        (any(len(headers.getlist(name)) > 1 for name in ("host", "origin")), 400, "more than one host or origin"),
        (_name(host) not in OUR_NAMES, 403, f"open http://localhost:PORT; this page answers to {', '.join(OUR_NAMES)}"),
        (origin not in (None, f"{scheme}://{host}"), 403, "the request comes from another page"),
        (from_elsewhere and headers.get("sec-fetch-mode") != "navigate", 403, "the request comes from another page"),
        (request.method not in ("GET", "HEAD"), 405, "only reading is allowed here"),
        (
            headers.get("content-length", "0") != "0" or "transfer-encoding" in headers,
            413,
            "a request has no body here",
        ),
        (n_header_bytes > MAX_HEADER_BYTES, 431, f"a request may have at most {MAX_HEADER_BYTES} bytes of headers"),
        (len(scope["raw_path"]) + len(scope["query_string"]) > MAX_URL_BYTES, 414, f"at most {MAX_URL_BYTES} bytes"),
    )
    return next(((status, reason) for is_refused, status, reason in refusals if is_refused), None)


def _name(host: str) -> str | None:
    """The name in a Host header. The port is free: that of an SSH tunnel may be any.

    >>> _name("LocalHost:8470"), _name("[::1]:1"), _name("localhost@evil.example"), _name("localhost:x")
    ('localhost', '::1', None, None)
    """
    try:
        parts = urlsplit(f"//{host}")
        _ = parts.port  # raises where it is no number
    except ValueError:
        return None
    return parts.hostname if parts.netloc == host and "@" not in host and not parts.path else None


def listen(port: int) -> socket.socket:
    """A socket that only this machine can reach; port 0 takes any free one.

    Raises:
        ResourceError: the port is taken, naming the next one that is free.
    """
    for host in LOOPBACK:
        try:
            return _open(host, port)
        except OSError as error:
            match error.errno:
                case errno.EADDRNOTAVAIL | errno.EAFNOSUPPORT:  # this machine has no such addresses
                    continue
                case errno.EADDRINUSE:
                    raise ResourceError(_taken(host, port)) from None
                case errno.EACCES:
                    raise ResourceError(f"port {port} is for the system's own services: use --port 8470") from None
            raise
    raise ResourceError("this machine has no loopback address, neither 127.0.0.1 nor ::1: see `ip address show lo`")


def _open(host: str, port: int) -> socket.socket:
    return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=128)


def _taken(host: str, port: int) -> str:
    for free in range(port + 1, min(port + 100, 65_536)):
        with contextlib.suppress(OSError), _open(host, free):
            return f"port {port} is in use by another program: use --port {free}"
    return f"port {port} is in use by another program: use --port 0, which takes any"


def address(listening: socket.socket) -> str:
    """The address for a browser."""
    host, port = listening.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/"


def serve(app: FastAPI, listening: socket.socket) -> None:
    """Answer on a socket from `listen` until SIGINT or SIGTERM, which is then raised again."""
    our_server = server(app)
    with our_server.capture_signals():  # before `run` does it: a signal must not break into the making of its loop
        our_server.run(sockets=[listening])


def server(app: FastAPI) -> uvicorn.Server:
    """The server, with its limits."""
    settings: dict[str, object] = {
        "log_level": "warning", "access_log": False, "server_header": False, "lifespan": "off", "ws": "none",
        "loop": "asyncio", "http": "h11", "h11_max_incomplete_event_size": MAX_HEADER_BYTES,
        "limit_concurrency": MAX_REQUESTS, "timeout_keep_alive": 10, "timeout_graceful_shutdown": 2,
    }  # fmt: skip
    return uvicorn.Server(uvicorn.Config(app, **settings))  # type: ignore[arg-type]
