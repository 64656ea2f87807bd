"""What a request would do and cost, before any weight is read; then the same with other guidance."""

from ltx_pipelines import TI2VidOneStagePipeline
from ltx_pipelines.planning.cost import cost_of

pipeline = TI2VidOneStagePipeline.from_pretrained()
late = {0.6: 1.0, 1.0: 4.0}  # guided only while there is much noise
for name, scale in (("guided throughout", 3.0), ("guided at first", late), ("not guided", 1.0)):
    plan = pipeline.plan("a yellow star slides", video_cfg_scale=scale, audio_cfg_scale=scale)
    cost = cost_of(plan, pipeline.ledger)
    print(f"{name}: {plan.stages[0].steps} steps, {cost.flops / 1e12:.3g} TFLOP, {cost.peak / 1e9:.2g} GB")
