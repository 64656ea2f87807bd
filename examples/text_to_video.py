"""A clip with sound from a sentence. Run: python examples/text_to_video.py "a small red ball bounces" ball.mp4"""

import sys

from ltx_pipelines import TI2VidOneStagePipeline

prompt, path = sys.argv[1:] or ("a small red ball bounces on a blue background with a low knock", "ball.mp4")

pipeline = TI2VidOneStagePipeline.from_pretrained()  # $LTX_MODEL, else the bundled model; or name one
clip = pipeline(prompt, seed=10)
clip.save(path)
print(clip)
