"""Tasks as values: plans, the stages they are made of, what refuses them and what they cost."""
