"""Operations of the trainer area."""

from tests.golden.operations import Operation
from tests.golden.trainer_cases import objective

OPERATIONS: dict[tuple[str, str], Operation] = {**objective.OPERATIONS}
