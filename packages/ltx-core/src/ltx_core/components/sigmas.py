"""Published sigma tables of the distilled models: falling noise levels, n values for n - 1 steps."""

from __future__ import annotations

#: Distilled LTX-2, stage 1: 8 steps.
DISTILLED_SIGMAS: tuple[float, ...] = (1.0, 0.99375, 0.9875, 0.98125, 0.975, 0.909375, 0.725, 0.421875, 0.0)
#: Stage 2 after the spatial upsampler: 3 steps.
STAGE_2_SIGMAS = DISTILLED_SIGMAS[5:]
#: Stage 2 in tiles on several accelerators: 2 steps.
TILED_STAGE_2_SIGMAS: tuple[float, ...] = (0.625, 0.4, 0.0)
#: Stage 2 of HDR clips: 2 steps.
HDR_STAGE_2_SIGMAS: tuple[float, ...] = (0.909375, 0.725, 0.0)
#: Each round of temporal upsampling: 4 steps.
TEMPORAL_ROUND_SIGMAS = DISTILLED_SIGMAS[4:]
#: Distilled LTX-Video 0.9.8, first and second pass; its config files hold rounded numbers and no final 0.
LTXV_DISTILLED_SIGMAS: tuple[float, ...] = (1.0, 0.9937, 0.9875, 0.9812, 0.975, 0.9094, 0.725)
LTXV_SECOND_PASS_SIGMAS: tuple[float, ...] = (0.9094, 0.725, 0.4219)
