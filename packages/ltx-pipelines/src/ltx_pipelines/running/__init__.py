"""Running a plan: the engine, what a stage begins with, the files of a model, the recipe of what was made."""
