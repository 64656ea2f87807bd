"""Shared parts of the pipelines: media, layouts, model sessions."""
