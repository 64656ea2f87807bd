"""The audio-video diffusion transformer of LTX-2 and the video transformer of LTX-Video."""
