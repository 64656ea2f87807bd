"""`ltx serve`: the page and the API."""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from ltx_core.errors import ConfigError
from ltx_core.parallel.executor import Cluster, check_installed
from ltx_pipelines.cli.command import Command
from ltx_pipelines.planning.schema import UsageError, option, options_of
from ltx_studio.guard import LOOPBACK

ABOUT = """Open a page that makes clips, and an HTTP API in the shapes of OpenAI's videos.

Without options it serves the bundled model on this machine alone. Any other address than loopback needs a key.
"""


@dataclass(frozen=True)
class Serve:
    """The options of `ltx serve`."""

    model: str = option("tiny", "Model of requests that name none.", "--model", "-m", metavar="MODEL")
    host: str = option("127.0.0.1", "Address to listen on.")
    port: int = option(7860, "Port to listen on; 0 takes a free one.", least=0, most=65535)
    api_key: str = option("", "Key that clients send; also $LTX_API_KEY.", shown="none on loopback")
    data: str = option("", "Folder of the queue and its clips.", metavar="FOLDER", shown="the user's data folder")
    workers: str = option("auto", "Devices, one worker each: auto, cpu, cuda:0,cuda:1.", metavar="DEVICES")
    ray: Cluster | None = option(None, "Make clips on a Ray cluster, by default this machine's or a new one.")
    quota: float = option(20.0, "Clips are kept up to this size, favourites always.", unit="GB", positive=True)
    no_browser: bool = option(False, "Do not open the page.")


def default_folder() -> Path:
    """The default folder of clips: the user's data folder."""
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "ltx-studio"


def settings_of(asked: Serve) -> Any:
    """The settings of a server. Raises `ConfigError` for an open address without a key."""
    from ltx_studio.guard import Limits
    from ltx_studio.server import Settings

    key = asked.api_key or os.environ.get("LTX_API_KEY") or None
    local = asked.host in LOOPBACK
    if not local and key is None:
        proposal = secrets.token_urlsafe(24)
        raise ConfigError(f"--host is {asked.host}, which others can reach: expected --api-key, for example {proposal}")
    devices: tuple[str | None, ...] = (None,) if asked.workers == "auto" else tuple(asked.workers.split(","))
    if asked.ray is not None:
        check_installed()
        if asked.workers != "auto":
            raise UsageError("--workers names devices of this machine, expected it left out with --ray")
        devices = (f"ray:{asked.ray.workers}:{asked.ray.address}",)  # one process, which speaks to the cluster
    return Settings(
        data=Path(asked.data) if asked.data else default_folder(),
        model=asked.model,
        key=key,
        hosts=LOOPBACK if local else (),
        devices=devices,
        limits=Limits(quota_bytes=int(asked.quota * 10**9)),
    )


def hold(data: Path) -> TextIO:
    """Make a data folder this server's own, as long as the file stays open. Raises `ConfigError`."""
    import fcntl

    data.mkdir(parents=True, exist_ok=True)
    lock = (data / "server.lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ConfigError(f"another server uses {data}; stop it, or give --data another folder") from None
    return lock


def serve(given: dict[str, Any]) -> None:
    """Listen until interrupted."""
    import socket
    import webbrowser

    import uvicorn

    from ltx_studio.server import create_app

    asked = Serve(**given)
    settings = settings_of(asked)
    held = hold(settings.data)
    app = create_app(settings)
    listening = socket.socket(socket.AF_INET6 if ":" in asked.host else socket.AF_INET)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((asked.host, asked.port))
    except OSError as error:
        raise ConfigError(f"cannot listen on {asked.host}:{asked.port}: {error.strerror}; try --port 0") from error
    address = f"http://{asked.host}:{listening.getsockname()[1]}"
    sys.stdout.write(f"serving {asked.model} at {address} (Ctrl-C stops it)\n")
    sys.stdout.flush()
    if not asked.no_browser and os.isatty(0):
        webbrowser.open(address)
    config = uvicorn.Config(
        app,
        log_level="warning",
        timeout_keep_alive=30,
        timeout_graceful_shutdown=2,  # seconds; an open page never closes its events
        h11_max_incomplete_event_size=65536,
    )
    with held:
        uvicorn.Server(config).run(sockets=[listening])


SERVE = Command("serve", ABOUT, options_of(Serve), serve)


def app(line: Sequence[str]) -> None:
    """The sub-command, as the `ltx` command calls it."""
    SERVE(line)
