"""Make a clip, then continue it: what is there is held, and what follows fits to it."""

from ltx_pipelines import ExtendPipeline, TI2VidOneStagePipeline

start = TI2VidOneStagePipeline.from_pretrained()
start("a red ball bounces", seed=4).save("start.mp4")

longer = ExtendPipeline(start.ledger)  # on the same networks
clip = longer("a red ball bounces", video_path="start.mp4", extend_seconds=0.5, seed=5)
clip.save("longer.mp4")
print(clip)
