"""What may wait: golden operations not yet built, each with its reason. A listed case that passes fails the run."""

WAITING: dict[tuple[str, str], str] = {}
