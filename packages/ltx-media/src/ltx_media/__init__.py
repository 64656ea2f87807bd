"""Pictures, clips and sound in and out of files: the only place that knows containers, codecs and colour tags."""
