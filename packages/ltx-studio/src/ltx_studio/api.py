"""The shapes of the HTTP API: OpenAI's videos, with what we add beside it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from ltx_core.errors import ConfigError
from ltx_studio.store import Job

#: OpenAI's fields -> ours. Everything else is a field of the request schema.
RENAMED = {"seconds": "duration"}


class Video(BaseModel):
    """A clip that was asked for, as OpenAI describes it; ``ltx`` holds what it does not know of."""

    id: str
    object: str = "video"
    created_at: int
    completed_at: int | None = None
    expires_at: int | None = None
    status: str
    model: str
    progress: int = Field(description="0 to 100")
    prompt: str | None = None
    seconds: str
    size: str
    quality: str = "standard"
    error: dict[str, str] | None = None
    remixed_from_video_id: str | None = None
    ltx: dict[str, Any] = Field(default_factory=dict)


class VideoList(BaseModel):
    """A page of clips."""

    object: str = "list"
    data: list[Video]
    first_id: str | None
    last_id: str | None
    has_more: bool


class VideoDeleted(BaseModel):
    """A clip that is gone."""

    id: str
    object: str = "video.deleted"
    deleted: bool = True


class CreateVideo(BaseModel):
    """A clip to make: OpenAI's fields, and any of `ltx generate`'s options by name."""

    model_config = ConfigDict(extra="allow")
    prompt: str = ""
    model: str | None = None
    seconds: str | float | None = None
    size: str | None = Field(None, description="WIDTHxHEIGHT in pixels")
    input_reference: str | None = Field(None, description="an upload: a picture to start from, a clip or a sound")


class Remix(BaseModel):
    """The same clip with another prompt."""

    prompt: str


class Plan(BaseModel):
    """Effect and cost of a request."""

    pipeline: str
    size: str
    frames: int
    fps: float
    seconds: float
    steps: int
    peak_bytes: int | None = None
    text: str


def video_of(job: Job, waiting: int = 0) -> Video:
    """A job as the API shows it. A cancelled job is a failed one to OpenAI's clients; ``ltx.status`` says which."""
    facts = job.facts
    size = f"{facts['width']}x{facts['height']}" if "width" in facts else str(job.request.get("size", ""))
    status = "failed" if job.status == "cancelled" else job.status
    failure = {"code": "cancelled", "message": "cancelled"} if job.status == "cancelled" else None
    if job.error is not None:
        failure = {"code": "generation_failed", "message": job.error}
    return Video(
        id=job.id,
        created_at=int(job.created_at),
        completed_at=int(job.ended_at) if job.status == "completed" and job.ended_at else None,
        status=status,
        model=job.model,
        progress=int(100 * job.progress),
        prompt=str(job.request.get("prompt", "")),
        seconds=str(facts.get("seconds", job.request.get("duration", ""))),
        size=size,
        error=failure,
        remixed_from_video_id=job.remix_of,
        ltx={
            "status": job.status,
            "phase": job.phase,
            "request": dict(job.request),
            "favourite": job.favourite,
            "waiting_behind": waiting,
            **facts,
        },
    )


def request_of(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The request of our schema from OpenAI's fields and ours. Raises `ConfigError`."""
    given = {RENAMED.get(name, name): value for name, value in fields.items() if value is not None}
    if not given.get("model"):
        given.pop("model", None)
    if "duration" in given:
        given["duration"] = _number(given["duration"], "seconds")
    if (size := given.pop("size", None)) not in (None, "", "auto"):
        if (sides := re.fullmatch(r"(\d{1,5})x(\d{1,5})", str(size))) is None:
            raise ConfigError(f"size is {str(size)[:40]!r}, expected WIDTHxHEIGHT such as 768x512")
        given |= {"width": int(sides[1]), "height": int(sides[2])}
    if (reference := given.pop("input_reference", None)) is not None:
        given |= _reference(reference)
    return given


def _reference(upload: Any) -> dict[str, Any]:
    """Meaning of an upload without a stated place: a picture to start from, a clip to go on from, a sound to follow."""
    suffix = str(upload).rpartition(".")[2]
    if suffix in ("png", "jpg", "webp"):
        return {"images": [[upload]]}
    return {"audio_path": upload} if suffix in ("wav", "mp3", "flac", "ogg") else {"video_path": upload}


def _number(value: Any, name: str) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise ConfigError(f"{name} is {value!r}, expected a number") from None
