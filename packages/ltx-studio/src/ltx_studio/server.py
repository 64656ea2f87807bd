"""The HTTP server: routes over the store. Nothing here imports torch; plans and clips are made in other processes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, PlainTextResponse, Response, StreamingResponse
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException

from ltx_core.errors import LtxError
from ltx_core.textfiles import parse_json
from ltx_studio.api import CreateVideo, Plan, Remix, Video, VideoDeleted, VideoList, request_of, video_of
from ltx_studio.files import Files
from ltx_studio.guard import Guard, Limits, RateLimit, error
from ltx_studio.planner import Planner
from ltx_studio.requests import canonical, is_servers, names_files
from ltx_studio.store import Job, Store
from ltx_studio.supervisor import Hub, Supervisor

STATIC = Path(__file__).parent / "static"
VARIANTS = {"video": None, "thumbnail": "thumbnail.webp", "spritesheet": "spritesheet.jpg"}
DELETE_WAITS = 60.0  # seconds for a running job to stop
SCENES = {  # what ``storyboard`` is here: the content of its file
    "description": "Scenes in order: prompt, seconds, keyframes (image, an upload, at so many seconds), camera.",
    "type": "array",
    "items": {"type": "object"},
    "group": "Conditions",
}
PING = 15.0  # seconds between signs of life of a stream of events


@dataclass(frozen=True)
class Settings:
    """Settings of a server. ``devices`` is one worker each; None is the best device there is."""

    data: Path
    model: str = "tiny"
    key: str | None = None
    hosts: tuple[str, ...] = ()
    devices: tuple[str | None, ...] = (None,)
    limits: Limits = field(default_factory=Limits)
    run_workers: bool = True


class Studio:
    """State that the routes share."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.store, self.files, self.hub = Store(settings.data), Files(settings.data), Hub()
        self.supervisor = Supervisor(self.store, self.files, self.hub, settings.model, list(settings.devices))
        self.planner = Planner(self.files, settings.model)
        self.creating = RateLimit(settings.limits.creates_per_minute)

    def find(self, job_id: str) -> Job:
        """The job of an id. Raises 404."""
        job = self.store.get(job_id)
        if job is None:
            raise HTTPException(404, f"there is no video {job_id[:60]}")
        return job

    def show(self, job: Job) -> Video:
        return video_of(job, self.store.queued_before(job) if job.status == "queued" else 0)

    @property
    def models(self) -> list[str]:
        """The models that are served, the usual one first."""
        return list(dict.fromkeys([self.settings.model, "tiny"]))

    async def make_room(self) -> None:
        """Clean the data folder. Raises 507 where what must stay fills it."""
        quota = self.settings.limits.quota_bytes
        if await asyncio.to_thread(self.files.clean, self.store, quota):
            raise HTTPException(507, f"what must stay fills the {quota / 1e9:g} GB of the data folder; delete clips")

    async def enqueue(self, client: str, fields: dict[str, Any], remix_of: str | None = None) -> Video:
        """Check a request and put it into the queue."""
        if not self.creating.allows(client):
            raise HTTPException(429, f"more than {self.creating.per_minute} clips a minute were asked for")
        limit = self.settings.limits.queued_jobs
        if self.store.counts().get("queued", 0) >= limit:
            raise HTTPException(429, f"{limit} clips are waiting already")
        request = canonical({"model": self.settings.model, **fields}, self.models)
        await asyncio.to_thread(self.planner.check, request)
        await self.make_room()
        job = await asyncio.to_thread(self.store.add, request, str(request["model"]), None, remix_of)
        self.supervisor.wake()
        return self.show(job)


def create_app(settings: Settings) -> FastAPI:
    """The application; its workers start and stop with it."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.studio = studio = Studio(settings)
        studio.files.sweep(studio.store)
        if settings.run_workers:
            studio.supervisor.start()
        yield
        await studio.supervisor.stop()
        studio.planner.stop()

    app = FastAPI(title="ltx-studio", version="1", lifespan=lifespan, docs_url=None, redoc_url=None)
    app.add_middleware(Guard, settings.key, settings.hosts, settings.limits)
    app.add_exception_handler(LtxError, lambda _, problem: error(400, str(problem)))
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.include_router(router)
    app.mount("/static", StaticFiles(directory=STATIC), name="static")
    return app


def _http_error(_: Request, problem: Exception) -> Response:
    assert isinstance(problem, HTTPException)
    return error(problem.status_code, str(problem.detail))


def _invalid(_: Request, problem: Exception) -> Response:
    assert isinstance(problem, RequestValidationError)
    first = problem.errors()[0]
    return error(400, f"{'.'.join(map(str, first['loc'][1:])) or 'body'}: {first['msg']}")


def studio_of(request: Request) -> Studio:
    """The studio of an application."""
    studio: Studio = request.app.state.studio
    return studio


def client_of(request: Request) -> str:
    """Address a request comes from."""
    return request.client.host if request.client else ""


The = Annotated[Studio, Depends(studio_of)]
router = APIRouter()


def _fields() -> Iterator[tuple[str, Any, dict[str, Any]]]:
    """Name, option and JSON schema of each field that clients choose."""
    from ltx_pipelines.cli.fields import PIPELINE, every_option
    from ltx_pipelines.pipeline import pipelines

    for name, one in {**every_option(), "pipeline": PIPELINE}.items():
        if not one.hidden and not is_servers(one):
            kind = {"enum": list(pipelines())} if one is PIPELINE else {}
            yield name, one, SCENES if name == "storyboard" else one.json_schema() | kind


def _create_body() -> dict[str, Any]:
    """The body of a new clip for the OpenAPI document: OpenAI's fields and every field of the request schema."""
    known = CreateVideo.model_json_schema()["properties"]
    ours = {name: kind for name, _, kind in _fields() if name not in known}
    schema = {"type": "object", "properties": {**known, **ours}}
    return {"content": {"application/json": {"schema": schema}, "multipart/form-data": {"schema": schema}}}


# OpenAI's videos -----------------------------------------------------------------------------------------------------


@router.post("/v1/videos", response_model=Video, openapi_extra={"requestBody": _create_body()})
async def create(request: Request, studio: The) -> Video:
    """Put a clip into the queue; JSON, or a form with files."""
    fields = await read_fields(request, studio)
    return await studio.enqueue(client_of(request), request_of(fields))


@router.get("/v1/videos", response_model=VideoList)
def videos(
    studio: The,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    order: Literal["asc", "desc"] = "desc",
) -> VideoList:
    """Clips in order of their making."""
    jobs = studio.store.list(after, limit + 1, order == "desc")
    data = [studio.show(job) for job in jobs[:limit]]
    return VideoList(
        data=data,
        first_id=data[0].id if data else None,
        last_id=data[-1].id if data else None,
        has_more=len(jobs) > limit,
    )


@router.get("/v1/videos/{job_id}", response_model=Video)
def video(job_id: str, studio: The) -> Video:
    """Status of a clip."""
    return studio.show(studio.find(job_id))


@router.get("/v1/videos/{job_id}/content")
def content(job_id: str, studio: The, variant: str = "video") -> Response:
    """The file of a clip, its thumbnail or its sheet of frames."""
    job = studio.find(job_id)
    if variant not in VARIANTS:
        raise HTTPException(400, f"variant is {variant[:40]!r}, expected one of {', '.join(VARIANTS)}")
    if job.status != "completed":
        raise HTTPException(409, f"the video is {job.status}, expected completed")
    path = studio.files.job(job.id) / (VARIANTS[variant] or str(job.facts["file"]))
    if not path.is_file():
        raise HTTPException(404, f"this clip has no {variant}")
    return FileResponse(path, filename=f"{job.id}{path.suffix}", content_disposition_type="inline")


@router.delete("/v1/videos/{job_id}", response_model=VideoDeleted)
async def delete(job_id: str, studio: The) -> VideoDeleted:
    """Forget a clip and its files; one that is being made is stopped first."""
    studio.find(job_id)
    await stop_job(studio, job_id)
    if not studio.store.delete(job_id):
        raise HTTPException(409, "the video is still being made")
    studio.files.remove_job(job_id)
    return VideoDeleted(id=job_id)


@router.post("/v1/videos/{job_id}/remix", response_model=Video)
async def remix(job_id: str, change: Remix, request: Request, studio: The) -> Video:
    """The same request with another prompt."""
    job = studio.find(job_id)
    return await studio.enqueue(client_of(request), {**job.request, "prompt": change.prompt}, job.id)


@router.post("/v1/videos/{job_id}/cancel", response_model=Video)
async def cancel(job_id: str, studio: The) -> Video:
    """Stop a clip that waits or is being made."""
    studio.find(job_id)
    await stop_job(studio, job_id)
    return studio.show(studio.find(job_id))


@router.post("/v1/videos/{job_id}/favourite", response_model=Video)
def favour(job_id: str, studio: The, on: bool = True) -> Video:
    """Spare a clip from cleaning."""
    studio.find(job_id)
    job = studio.store.favour(job_id, on)
    assert job is not None
    return studio.show(job)


@router.get("/v1/videos/{job_id}/events")
async def events(job_id: str, request: Request, studio: The) -> StreamingResponse:
    """Events of a clip, as server-sent events, until it has ended."""
    if job_id != "*":
        studio.find(job_id)
    stream = job_events(studio, job_id, request)
    return StreamingResponse(stream, media_type="text/event-stream", headers={"Cache-Control": "no-store"})


async def read_fields(request: Request, studio: Studio) -> dict[str, Any]:
    """The fields of a JSON body or a form; files are kept as uploads and stand for their names."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "multipart/form-data":
        try:
            fields = parse_json((await request.body()).decode(), "body")
        except ValueError:
            raise HTTPException(400, "the body is no JSON") from None
        if not isinstance(fields, dict):
            raise HTTPException(400, f"the body is {type(fields).__name__}, expected an object")
        return fields
    form = await request.form(max_files=studio.settings.limits.uploads_per_request, max_fields=200)
    found: dict[str, Any] = {}
    for name, value in form.multi_items():
        found[name] = form_value(name, value) if isinstance(value, str) else await keep_upload(studio, value)
    return found


def form_value(name: str, text: str) -> Any:
    """A field of a form, where all is text: numbers, switches and lists of our options are read as JSON."""
    from ltx_pipelines.cli.fields import every_option

    one = every_option().get(name)
    if one is None or one.element is str:
        return text
    try:
        return parse_json(text, name)
    except ValueError:
        return text


async def keep_upload(studio: Studio, upload: Any) -> str:
    """Write an upload under a name of ours, which is returned."""
    await studio.make_room()
    head = await upload.read(64)
    path = studio.files.new_upload(head)
    with path.open("wb") as file:
        file.write(head)
        while chunk := await upload.read(2**20):
            await asyncio.to_thread(file.write, chunk)
    return path.name


async def stop_job(studio: Studio, job_id: str) -> None:
    """Cancel a job and wait until its worker has let go of it."""
    with studio.hub.listening(job_id) as queue:
        job = studio.store.cancel(job_id)
        if job is not None and job.status == "cancelled":
            studio.hub.publish({"id": job_id, "event": "cancelled"})
        deadline = asyncio.get_running_loop().time() + DELETE_WAITS
        while job is not None and not job.ended and asyncio.get_running_loop().time() < deadline:
            with suppress(TimeoutError):
                await asyncio.wait_for(queue.get(), 1.0)
            job = studio.store.get(job_id)


async def job_events(studio: Studio, job_id: str, request: Request) -> AsyncIterator[str]:
    """Server-sent events of one job, the first of them how it stands now; of all jobs with ``*``."""
    with studio.hub.listening(job_id) as queue:
        if job_id != "*":
            job = studio.find(job_id)
            yield _sse("state", studio.show(job).model_dump())
            if job.ended:
                return
        while not await request.is_disconnected():
            try:
                event = await asyncio.wait_for(queue.get(), PING)
            except TimeoutError:
                yield ": still here\n\n"
                continue
            yield _sse(event["event"], event)
            if job_id != "*" and event["event"] in ("completed", "failed", "cancelled"):
                return


def _sse(kind: str, data: dict[str, Any]) -> str:
    return f"event: {kind}\ndata: {json.dumps(data)}\n\n"


# The page, plans, uploads, health, metrics ---------------------------------------------------------------------------


@router.get("/", include_in_schema=False)
def page() -> FileResponse:
    return FileResponse(STATIC / "index.html")


@router.get("/healthz")
def health(studio: The) -> dict[str, Any]:
    """Whether the server and its workers are there."""
    workers = {name: process.returncode is None for name, process in studio.supervisor.processes.items()}
    return {"status": "ok", "workers": workers, "jobs": studio.store.counts()}


@router.get("/metrics")
def metrics(studio: The) -> PlainTextResponse:
    """Counts for Prometheus."""
    from prometheus_client import CollectorRegistry, Gauge, generate_latest

    registry = CollectorRegistry()
    jobs = Gauge("ltx_jobs", "Jobs by status", ["status"], registry=registry)
    for status, count in studio.store.counts().items():
        jobs.labels(status).set(count)
    alive = sum(process.returncode is None for process in studio.supervisor.processes.values())
    Gauge("ltx_workers", "Workers that are alive", registry=registry).set(alive)
    Gauge("ltx_data_bytes", "Bytes in the data folder", registry=registry).set(studio.files.used_bytes())
    return PlainTextResponse(generate_latest(registry).decode(), media_type="text/plain; version=0.0.4")


@router.get("/v1/models")
def models(studio: The) -> dict[str, Any]:
    """The models this server knows."""
    data = [{"id": name, "object": "model", "created": 0, "owned_by": "ltx"} for name in studio.models]
    return {"object": "list", "data": data}


@router.get("/v1/schema")
def schema() -> dict[str, Any]:
    """Every field of a request, in the groups of the command's help; what the page draws its options from."""
    return {
        name: {"group": one.group, "help": one.help, "default": one.default_text, "file": names_files(one)} | kind
        for name, one, kind in _fields()
    }


@router.post("/v1/plan", response_model=Plan)
async def plan(request: Request, studio: The) -> Plan:
    """Effect and cost of a request; nothing is read but the headers of files."""
    fields = request_of(await read_fields(request, studio))
    asked = canonical({"model": studio.settings.model, **fields}, studio.models)
    return await asyncio.to_thread(studio.planner.plan, asked)


@router.post("/v1/uploads")
async def upload(request: Request, studio: The) -> JSONResponse:
    """Keep a file for a later request; the answer names it."""
    form = await request.form(max_files=1)
    files = [value for value in form.values() if not isinstance(value, str)]
    if not files:
        raise HTTPException(400, "the form holds no file")
    return JSONResponse({"name": await keep_upload(studio, files[0])})
