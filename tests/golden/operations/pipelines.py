"""Operations of the pipelines area."""

from tests.golden.operations import Operation
from tests.golden.pipelines_cases import ltxv, media, runs

OPERATIONS: dict[tuple[str, str], Operation] = {**media.OPERATIONS, **ltxv.OPERATIONS, **runs.OPERATIONS}
