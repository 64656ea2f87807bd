"""Follow a run step by step, look at what it predicts, and stop it when enough has been seen."""

from ltx_pipelines import TI2VidOneStagePipeline

pipeline = TI2VidOneStagePipeline.from_pretrained()
events = pipeline.stream("a green square spins", seed=1)
for event in events:
    if event.phase == "denoise" and event.step:
        preview = event.preview()  # the predicted latent of the finished clip [1, 128, F, h, w]
        print(f"step {event.step} of {event.total}, sigma {event.sigma:.3f}, spread {preview.std():.3f}")
        if event.step == 2:
            events.close()  # ends the run between two steps; the networks stay loaded
            break
