"""The targets of a student: where a guided teacher arrives, worked out by hand for one whose velocities are known."""

from __future__ import annotations

import torch

from ltx_trainer.distillation import DistillSettings, StepSampler, teacher_targets
from ltx_trainer.draws import step_draws
from ltx_trainer.training_strategies.inputs import Tokens, TrainingInputs, give_tokens, velocity_inputs


def test_a_student_is_to_land_where_the_guided_teacher_does():
    """The teacher says ``x + sigma + context``; every example has a span of its own and its first token is given."""
    generator = torch.Generator().manual_seed(0)
    clean, noise = torch.randn(2, 2, 3, 4, dtype=torch.float64, generator=generator)
    spans = [(1.0, 0.7), (0.5, 0.0)]
    tokens = Tokens(clean, torch.zeros(2, 3, 3, 2), (3, 1, 1))
    inputs = velocity_inputs(tokens, torch.tensor([first for first, _ in spans], dtype=torch.float64), noise)
    inputs = give_tokens(inputs, clean, torch.tensor([[True, False, False]]).expand(2, 3))

    def predict(moving, contexts):
        video = moving.modalities["video"]
        assert torch.equal(video.timesteps[:, 1], video.sigma) and not video.timesteps[:, 0].any()
        return {"video": video.latent + video.timesteps.unsqueeze(-1) + contexts["video"]}

    contexts = {"video": torch.tensor(2.0)}, {"video": torch.tensor(5.0)}  # of the caption, and of the empty one
    first, last = (torch.tensor(ends, dtype=torch.float64) for ends in zip(*spans, strict=True))
    settings = DistillSettings(guidance_scale=3.0, substeps=4)
    found = teacher_targets(predict, TrainingInputs({"video": inputs}), (first, last), contexts, settings)["video"]

    for example, (sigma, end) in enumerate(spans):
        latent, step = inputs.latent[example, 1:], (end - sigma) / 4
        for index in range(4):
            unguided = latent + sigma + index * step + 5.0
            latent = latent + step * (unguided + 3.0 * (2.0 - 5.0))
        assert torch.allclose(inputs.latent[example, 1:] + (end - sigma) * found[example, 1:], latent)
    assert not found[:, 0].any()


def test_every_step_of_a_schedule_is_learned_as_often():
    sampler = StepSampler((1.0, 0.9, 0.5, 0.0))
    drawn = sampler.sample(step_draws("cpu", 0), 3000, 0)
    for sigma in sampler.sigmas[:-1]:
        assert abs(int((drawn == torch.tensor(sigma)).sum()) - 1000) < 100
    assert drawn.min() > 0.4
