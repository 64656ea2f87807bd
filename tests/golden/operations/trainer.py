"""Operations of the trainer area."""

from tests.golden.operations import Operation
from tests.golden.trainer_cases import data, objective, training, validation

OPERATIONS: dict[tuple[str, str], Operation] = {
    **objective.OPERATIONS,
    **data.OPERATIONS,
    **training.OPERATIONS,
    **validation.OPERATIONS,
}
