"""Operations of the pipelines area."""

from tests.golden.operations import Operation
from tests.golden.pipelines_cases import media

OPERATIONS: dict[tuple[str, str], Operation] = {**media.OPERATIONS}
