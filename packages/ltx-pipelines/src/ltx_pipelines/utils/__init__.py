"""What the pipelines share: media, layouts, model sessions."""
