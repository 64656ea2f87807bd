"""Plans requests in a process of its own, so that the server needs no torch and a hard plan cannot hurt it."""

from __future__ import annotations

import contextlib
import io
import json
import select
import subprocess
import sys
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ltx_core.errors import ConfigError, LtxError
from ltx_studio.api import Plan
from ltx_studio.files import Files
from ltx_studio.requests import resolve

if TYPE_CHECKING:
    from ltx_pipelines.utils.model_ledger import ModelLedger

PATIENCE = 60.0  # seconds for one plan


class Planner:
    """Asks the planning process, one request at a time; it is started when it is first needed, or needed again."""

    def __init__(self, files: Files, model: str) -> None:
        self.files, self.model = files, model
        self._process: subprocess.Popen[str] | None = None
        self._lock = threading.Lock()

    def check(self, request: Mapping[str, Any]) -> None:
        """Raise `ConfigError`, with the words the command would say, for a canonical request that cannot be run."""
        self._ask(request, costed=False)

    def plan(self, request: Mapping[str, Any]) -> Plan:
        """Effect and cost of a canonical request. Raises `ConfigError`."""
        return Plan(**self._ask(request, costed=True))

    def _ask(self, request: Mapping[str, Any], costed: bool) -> dict[str, Any]:
        answer = self._answer({"request": {"model": self.model, **resolve(request, self.files)}, "costed": costed})
        if "error" in answer:
            raise ConfigError(answer["error"].replace(f"{self.files.folder}/", ""))
        return answer

    def _answer(self, question: Mapping[str, Any]) -> dict[str, Any]:
        with self._lock:
            if self._process is None or self._process.poll() is not None:
                command = [sys.executable, "-m", "ltx_studio.planner"]
                self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            process = self._process
            assert process.stdin is not None and process.stdout is not None
            try:
                process.stdin.write(json.dumps(question) + "\n")
                process.stdin.flush()
                ready, _, _ = select.select([process.stdout], [], [], PATIENCE)
                line = process.stdout.readline() if ready else ""
            except OSError:
                line = ""
            if not line:
                self.stop()
                raise ConfigError("the request could not be planned in time; ask for less")
            answer: dict[str, Any] = json.loads(line)
            return answer

    def stop(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


def answer(request: Mapping[str, Any], ledgers: dict[str, ModelLedger], costed: bool) -> dict[str, Any]:
    """The plan of a request in plain values, with its cost if that is asked; else only that it can be made."""
    from ltx_pipelines.cli.fields import from_json
    from ltx_pipelines.cli.plan import print_plan
    from ltx_pipelines.cli.session import open_session
    from ltx_pipelines.planning.cost import cost_of

    given = from_json(request, "request")
    session = open_session(given, share=ledgers)
    plan = session.pipeline.plan(**session.request)
    if not costed:
        return {}
    cost = cost_of(plan, session.ledger)
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        print_plan(plan, cost)
    shape = plan.shape
    return {
        "pipeline": plan.pipeline,
        "size": f"{shape.width}x{shape.height}",
        "frames": shape.frames,
        "fps": shape.fps,
        "seconds": round(shape.duration, 3),
        "steps": sum(stage.steps for stage in plan.stages),
        "peak_bytes": cost.peak,
        "text": text.getvalue(),
    }


def main() -> None:
    """A line of JSON in, a line of JSON out, until the input ends."""
    out = sys.stdout
    sys.stdout = sys.stderr  # nothing but answers on standard output
    ledgers: dict[str, ModelLedger] = {}
    for line in sys.stdin:
        try:
            found = answer(ledgers=ledgers, **json.loads(line))
        except LtxError as error:
            found = {"error": str(error)}
        except Exception as error:  # any other failure is the request's too; the process goes on
            found = {"error": f"internal error: {type(error).__name__}: {str(error)[:300]}"}
        with contextlib.suppress(BrokenPipeError):  # the server is gone
            out.write(json.dumps(found) + "\n")
            out.flush()


if __name__ == "__main__":
    main()
