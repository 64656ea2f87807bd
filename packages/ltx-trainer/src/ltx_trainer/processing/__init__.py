"""From clips, pictures, sound and captions to precomputed files."""
