"""A procedural audio-video world and a small LTX-2 trained on it."""
