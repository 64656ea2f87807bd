"""Operations of the pipelines area by topic; `operations/pipelines.py` merges them."""
