"""Several clips of one prompt: networks are loaded and the prompt is read once. Then one of them is made again."""

from ltx_pipelines import TI2VidOneStagePipeline, generate, plan_from_json

pipeline = TI2VidOneStagePipeline.from_pretrained()
clips = [pipeline("a blue ring drifts", seed=seed) for seed in range(2)]
for clip in clips:
    clip.save(f"ring-{clip.plan.seed}.mp4")

plan = plan_from_json(clips[1].plan.to_json())  # a plan is plain JSON: it can be kept, sent and run elsewhere
for event in generate(plan, pipeline.ledger):
    again = event.generation
assert (again.video.tensor() == clips[1].video.tensor()).all()
print(clips, "and the second once more, the same to the bit")
