"""Golden operations of what lies between the models and the pipelines. The sampler cases are in `sampling_cases`."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ltx_core.components import schedulers as sigma_tables
from ltx_core.components.diffusion_steps import (
    EulerAncestralDiffusionStep,
    EulerCfgPpDiffusionStep,
    EulerDiffusionStep,
    HeunDiffusionStep,
    Res2sDiffusionStep,
)
from ltx_core.components.guiders import (
    CFGGuider,
    CFGStarRescalingGuider,
    LegacyStatefulAPGGuider,
    LtxAPGGuider,
    MultiModalGuider,
    MultiModalGuiderFactory,
    MultiModalGuiderParams,
    STGGuider,
)
from ltx_core.components.helpers import (
    conform_latent_length,
    evenly_spaced_keyframe_positions,
    seconds_to_frames,
    temporal_subsample,
)
from ltx_core.components.noisers import GaussianNoiser, normalized_noise
from ltx_core.components.patchifiers import AudioPatchifier, VideoLatentPatchifier, get_pixel_coords, to_seconds
from ltx_core.components.schedulers import BetaScheduler, LinearQuadraticScheduler, LTX2Scheduler
from ltx_core.conditioning import (
    AudioConditionByReferenceLatent,
    ConditioningItem,
    ConditioningItemAttentionStrengthWrapper,
    TemporalRegionMask,
    VideoConditionByKeyframeIndex,
    VideoConditionByLatentIndex,
    VideoConditionByMask,
    VideoConditionByReferenceLatent,
    VideoGeneratedKeyframeSlots,
)
from ltx_core.conditioning.mask_utils import build_attention_mask, downsample_mask_video_to_latent
from ltx_core.conditioning.tools import AudioLatentTools, VideoLatentTools
from ltx_core.guidance.perturbations import (
    BatchedPerturbationConfig,
    Perturbation,
    PerturbationConfig,
    PerturbationType,
)
from ltx_core.model.common.tiling import TileCountConfig, causal, split_by_count, split_by_size, trapezoidal_mask_1d
from ltx_core.model.transformer.modality import Modality
from ltx_core.sampling.modality import post_process_latent, timesteps_from_mask
from ltx_core.sampling.modality_tiling import VideoModalityTilingHelper
from ltx_core.sampling.res2s import res2s_coefficients
from ltx_core.types import (
    AudioLatentShape,
    GeneratedKeyframeLayout,
    LatentState,
    SpatioTemporalScaleFactors,
    VideoLatentShape,
    VideoPixelShape,
)
from ltx_core.utils import to_denoised, to_velocity
from tests.golden import sampling_cases
from tests.golden.case import Case
from tests.golden.operations import Operation

Tools = VideoLatentTools | AudioLatentTools
NOT_ARGUMENTS = ("name", "input", "step", "enabled", "tokens", "latent_shape")


def arguments(run: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """The named entries of a run, or all that are arguments of the call."""
    return {key: value for key, value in run.items() if (key in names if names else key not in NOT_ARGUMENTS)}


def per_run(compute: Callable[[Case, dict[str, Any]], Tensor | dict[str, Tensor]]) -> Operation:
    """An operation that computes `out.<run>`, or `out.<run>.<key>` from a dict, for each of `args.runs`."""

    def operation(case: Case) -> dict[str, Tensor]:
        results: dict[str, Tensor] = {}
        for run in case.args["runs"]:
            value = compute(case, run)
            parts = {"": value} if isinstance(value, Tensor) else {f".{key}": part for key, part in value.items()}
            results |= {f"out.{run['name']}{key}": part for key, part in parts.items()}
        return results

    return operation


def read(case: Case, run: Mapping[str, Any], name: str) -> Tensor:
    return case.tensors[f"in.{run['name']}.{name}"]


# --- shapes, patchifiers, positions


def shapes(case: Case) -> dict[str, Tensor]:
    pixels = [
        VideoPixelShape(*row, fps=fps)
        for row, fps in zip(case.inputs["pixel_shapes"].tolist(), case.inputs["fps"].tolist(), strict=True)
    ]
    results: dict[str, Tensor] = {}
    for i, factors in enumerate(case.args["scale_factors"]):
        scale = SpatioTemporalScaleFactors(*factors)
        latents = [VideoLatentShape.from_pixel_shape(shape, scale_factors=scale) for shape in pixels]
        results[f"out.latent_{i}"] = torch.tensor(latents)
        results[f"out.upscaled_{i}"] = torch.tensor([latent.upscale(scale) for latent in latents])
        results[f"out.tokens_{i}"] = torch.tensor([latent.token_count for latent in latents])
    results["out.audio_frames"] = torch.tensor([AudioLatentShape.from_video_pixel_shape(p).frames for p in pixels])
    for name in case.tensors:
        if name == "out.audio_frames_from_duration":
            results[name] = audio_frames(case.inputs["durations"])
        elif given := re.fullmatch(r"out\.audio_frames_(\d+)k_(\d+)_(\d+)", name):
            rate, hop, factor = (int(value) for value in given.groups())
            results[name] = audio_frames(
                case.inputs["durations"],
                sample_rate=rate * 1000,
                hop_length=hop,
                audio_latent_downsample_factor=factor,
            )
    return results


def audio_frames(durations: Tensor, **settings: int) -> Tensor:
    return torch.tensor([AudioLatentShape.from_duration(1, d, **settings).frames for d in durations.tolist()])


def scale_factors(case: Case) -> dict[str, Tensor]:
    runs = case.args["runs"]
    factors = [SpatioTemporalScaleFactors.from_blocks(run["blocks"], run["patch_size"]) for run in runs]
    return {"out.factors": torch.tensor(factors)}


def patchify_video(case: Case, run: dict[str, Any]) -> dict[str, Tensor]:
    patchifier, latent = VideoLatentPatchifier(run["patch_size"]), read(case, run, "latent")
    shape = VideoLatentShape.from_torch_shape(latent.shape)
    assert patchifier.get_token_count(shape) == run["token_count"]
    tokens = patchifier.patchify(latent)
    return {"tokens": tokens, "unpatchified": patchifier.unpatchify(tokens, shape)}


def patchify_audio(case: Case, run: dict[str, Any]) -> dict[str, Tensor]:
    patchifier, latent = AudioPatchifier(patch_size=1), read(case, run, "latent")
    tokens = patchifier.patchify(latent)
    return {
        "tokens": tokens,
        "unpatchified": patchifier.unpatchify(tokens, AudioLatentShape.from_torch_shape(latent.shape)),
    }


def positions_video(case: Case, run: dict[str, Any]) -> dict[str, Tensor]:
    shape = VideoLatentShape(*run["latent_shape"])
    bounds = VideoLatentPatchifier(run["patch_size"]).get_patch_grid_bounds(shape)
    coords = get_pixel_coords(bounds, SpatioTemporalScaleFactors(*run["scale_factors"]), run["causal_fix"])
    return {"bounds": bounds, "pixel_coords": coords, "positions": to_seconds(coords, run["fps"])}


def positions_audio(case: Case, run: dict[str, Any]) -> dict[str, Tensor]:
    settings = arguments(run, "is_causal", "shift", "sample_rate", "hop_length", "audio_latent_downsample_factor")
    shape = AudioLatentShape(run.get("batch", 1), 8, run["frames"], 16)
    return {"positions": AudioPatchifier(1, **settings).get_patch_grid_bounds(shape)}


# --- schedules, velocity, single steps, guiders


def ltx2_schedule(case: Case, run: dict[str, Any]) -> Tensor:
    shape = run.get("latent_shape") or (run.get("tokens") and [1, 1, run["tokens"], 1, 1])
    latent = torch.empty(shape, device="meta") if shape else None
    return LTX2Scheduler().execute(latent=latent, **arguments(run))


def distilled_tables(case: Case) -> dict[str, Tensor]:
    tables = {
        "distilled": sigma_tables.DISTILLED_SIGMAS,
        "stage_2": sigma_tables.STAGE_2_SIGMAS,
        "tdp": sigma_tables.TILED_STAGE_2_SIGMAS,
        "hdr_stage_2": sigma_tables.HDR_STAGE_2_SIGMAS,
        "dfr_temporal": sigma_tables.TEMPORAL_ROUND_SIGMAS,
    }
    return {f"out.{name}": torch.tensor(table) for name, table in tables.items()}


def velocity_denoised(case: Case) -> dict[str, Tensor]:
    results: dict[str, Tensor] = {}
    sigma = case.args["sigma"]
    for dtype in sorted({name.split(".")[0] for name in case.inputs}):
        given = case.group(f"in.{dtype}.")
        sample, velocity = given["sample"], given["velocity"]
        results |= {
            f"out.{dtype}.velocity": to_velocity(sample, sigma, given["denoised"]),
            f"out.{dtype}.denoised_scalar": to_denoised(sample, velocity, sigma),
            f"out.{dtype}.denoised_per_token": to_denoised(sample, velocity, given["timesteps"]),
        }
    return results


def euler_steps(case: Case) -> dict[str, Tensor]:
    results: dict[str, Tensor] = {}
    sigmas = case.inputs["sigmas"]
    for i in range(case.args["steps"]):
        sample, denoised = case.inputs[f"sample.{i}"], case.inputs[f"denoised.{i}"]
        results[f"mid.velocity.{i}"] = to_velocity(sample, sigmas[i], denoised)
        results[f"out.{i}"] = EulerDiffusionStep().step(sample, denoised, sigmas, i)
    return results


def euler_ancestral_step(case: Case, run: dict[str, Any]) -> Tensor:
    stepper = EulerAncestralDiffusionStep(run["eta"], run["s_noise"])
    sample, denoised, noise = (read(case, run, name) for name in ("sample", "denoised", "noise"))
    return stepper.step(sample, denoised, case.inputs["sigmas"], run["step"], noise=noise)


def euler_cfg_pp_step(case: Case, run: dict[str, Any]) -> Tensor:
    stepper = EulerCfgPpDiffusionStep(run["eta"], run["s_noise"])
    sample, denoised, uncond, noise = (read(case, run, name) for name in ("sample", "denoised", "uncond", "noise"))
    sigmas = case.inputs["sigmas"]
    return stepper.step(sample, denoised, sigmas, run["step"], uncond_denoised=uncond, noise=noise)


def res2s_step(case: Case, run: dict[str, Any]) -> Tensor:
    sample, denoised, noise = (read(case, run, name) for name in ("sample", "denoised", "noise"))
    sigmas = case.inputs.get(f"{run['name']}.sigmas", case.inputs.get("sigmas"))
    assert sigmas is not None
    return Res2sDiffusionStep().step(sample, denoised, sigmas, run["step"], noise, run["eta"])


def res2s_sde_coeff(case: Case, run: dict[str, Any]) -> Tensor:
    given = {} if run["given"] == "none" else {run["given"]: torch.tensor(run["value"])}
    return torch.stack(Res2sDiffusionStep.get_sde_coeff(torch.tensor(run["sigma_next"]), **given))


def heun_steps(case: Case) -> dict[str, Tensor]:
    results: dict[str, Tensor] = {}
    sigmas, stepper = case.inputs["sigmas"], HeunDiffusionStep()
    for run in case.args["runs"]:
        sample, denoised, name = read(case, run, "sample"), read(case, run, "denoised"), run["name"]
        predicted = stepper.step(sample, denoised, sigmas, run["step"])
        results[f"out.{name}"] = predicted
        if run["corrector"]:
            results[f"mid.{name}.predicted"] = predicted
            corrector = read(case, run, "denoised_at_predicted")
            results[f"out.{name}"] = stepper.step(sample, denoised, sigmas, run["step"], corrector)
    return results


def res2s_solver_coefficients(case: Case) -> dict[str, Tensor]:
    rows = [res2s_coefficients(h) for h in case.inputs["h"].tolist()]
    return {"out.a21_b1_b2": torch.tensor(rows, dtype=torch.float64)}


def single_guider(kind: type) -> Operation:
    def compute(case: Case, run: dict[str, Any]) -> Tensor:
        guider = kind(**arguments(run))
        assert guider.enabled() == run["enabled"]
        return guider.delta(case.inputs[f"{run['input']}.cond"], case.inputs[f"{run['input']}.uncond"])

    return per_run(compute)


def legacy_apg(case: Case, run: dict[str, Any]) -> dict[str, Tensor]:
    guider = LegacyStatefulAPGGuider(**arguments(run, "scale", "eta", "norm_threshold", "momentum"))
    calls = [f"call{i}" for i in range(run["calls"])]
    return {call: guider.delta(read(case, run, f"{call}.cond"), read(case, run, f"{call}.uncond")) for call in calls}


def multimodal_guider(case: Case, run: dict[str, Any]) -> Tensor:
    guider = MultiModalGuider(MultiModalGuiderParams(**run["params"]))
    uses = {
        "uncond": guider.do_unconditional_generation(),
        "ptb": guider.do_perturbed_generation(),
        "mod": guider.do_isolated_modality_generation(),
    }
    assert uses == run["uses"]
    weaker = [case.inputs[name] if used else None for name, used in uses.items()]
    return guider.calculate(case.inputs["cond"], *weaker)


def guider_tables(case: Case) -> dict[str, Tensor]:
    args = case.args
    guiders = [MultiModalGuider(MultiModalGuiderParams(skip_step=skip)) for skip in args["skip_steps"]]
    bins = {float(bound): MultiModalGuiderParams(cfg_scale=scale) for bound, scale in args["bins"].items()}
    factory = MultiModalGuiderFactory.from_dict(bins)
    return {
        "out.should_skip": torch.tensor([[g.should_skip_step(i) for i in range(args["steps"])] for g in guiders]),
        "out.cfg_by_sigma": torch.tensor([factory.params(sigma).cfg_scale for sigma in args["sigmas"]]),
    }


def perturbation_masks(case: Case, run: dict[str, Any]) -> dict[str, Tensor]:
    configs = [
        PerturbationConfig([Perturbation(PerturbationType[entry["type"]], entry["blocks"]) for entry in sample])
        for sample in run["samples"]
    ]
    batch = BatchedPerturbationConfig(configs, run["num_blocks"])
    kinds, blocks = [PerturbationType[name] for name in case.args["type_order"]], range(run["num_blocks"])
    assert kinds == list(PerturbationType)[: len(kinds)]
    return {
        "keep": batch.masks().float(),
        "any": torch.tensor([[batch.any_in_batch(kind, block) for block in blocks] for kind in kinds]),
        "all": torch.tensor([[batch.all_in_batch(kind, block) for block in blocks] for kind in kinds]),
    }


# --- states, noise, conditioning


def make_tools(settings: Mapping[str, Any]) -> Tools:
    if settings["modality"] == "audio":
        return AudioLatentTools(AudioPatchifier(patch_size=1), AudioLatentShape(*settings["target_shape"]))
    return VideoLatentTools(
        patchifier=VideoLatentPatchifier(patch_size=1),
        target_shape=VideoLatentShape(*settings["target_shape"]),
        fps=settings["fps"],
        scale_factors=SpatioTemporalScaleFactors(*settings["scale_factors"]),
        causal_fix=settings["causal_fix"],
    )


def make_item(item: Mapping[str, Any], given: Mapping[str, Tensor]) -> ConditioningItem:
    """`item` as in `args.items`; `given` are its tensors."""
    scalars = arguments(item, *(key for key in item if key not in ("type", "tensor", "attention_mask")))
    made: ConditioningItem
    match item["type"]:
        case "latent_index":
            made = VideoConditionByLatentIndex(given["latent"], **scalars)
        case "keyframe":
            made = VideoConditionByKeyframeIndex(given["latent"], **scalars)
        case "reference_video":
            made = VideoConditionByReferenceLatent(given["latent"], **scalars)
        case "reference_audio":
            made = AudioConditionByReferenceLatent(given["tokens"], given["positions"], **scalars)
        case "mask":
            made = VideoConditionByMask(given["latent"], given["mask"], **scalars)
        case "temporal_region":
            made = TemporalRegionMask(**scalars)
        case "keyframe_slots":
            made = VideoGeneratedKeyframeSlots(initial_keyframes=given.get("initial_keyframes"), **scalars)
        case unknown:
            raise AssertionError(f"unknown item {unknown}")
    if (strength := item.get("attention_mask")) is None:
        return made
    return ConditioningItemAttentionStrengthWrapper(made, given["attention_mask"] if strength == "tensor" else strength)


def state_tensors(prefix: str, state: LatentState) -> dict[str, Tensor]:
    return {f"{prefix}.{name}": value for name, value in vars(state).items() if isinstance(value, Tensor)}


def apply_items(case: Case) -> dict[str, Tensor]:
    tools, latent = make_tools(case.args["tools"]), case.inputs["initial_latent"]
    state = tools.create_initial_state(latent.device, latent.dtype, initial_latent=latent)
    results = state_tensors("mid.initial", state)
    for i, item in enumerate(case.args["items"]):
        state = make_item(item, case.group(f"in.item{i}.")).apply_to(state, tools)
        results |= state_tensors(f"mid.after_item{i}", state)
    results |= state_tensors("out.state", state)
    if layout := case.args.get("layout"):
        expected = GeneratedKeyframeLayout(
            tuple(layout["pixel_frame_indices"]), layout["tokens_per_keyframe"], layout["first_token"]
        )
        assert state.generated_keyframe_layout == expected
    if (denoised := case.inputs.get("denoised_tokens")) is not None:
        cleared = tools.clear_conditioning(LatentState(**{**vars(state), "latent": denoised}))
        results |= state_tensors("out.cleared", cleared)
        results |= state_tensors("out.unpatchified", tools.unpatchify(cleared))
    return {name: value for name, value in results.items() if name in case.tensors}


def gaussian_noise(case: Case, run: dict[str, Any]) -> dict[str, Tensor]:
    latent, clean, mask = (read(case, run, name) for name in ("latent", "clean_latent", "denoise_mask"))
    state = LatentState(latent, mask, torch.zeros(latent.shape[0], 1, latent.shape[1], 2), clean_latent=clean)
    noiser = GaussianNoiser(torch.Generator().manual_seed(run["seed"]))
    return {"latent": noiser(state, run["noise_scale"]).latent}


def noised_state_order(case: Case) -> dict[str, Tensor]:
    args, results = case.args, {}
    noiser = GaussianNoiser(torch.Generator().manual_seed(args["seed"]))
    for stage in (1, 2):
        for stream in ("video", "audio"):
            tools = make_tools(args[f"{stream}_tools"])
            initial = case.inputs[f"{stream}_initial"]
            start = initial if stage == 2 else None
            state = tools.create_initial_state(initial.device, initial.dtype, initial_latent=start)
            for item in args.get(f"stage{stage}_{stream}_items", []):
                state = make_item(item, {"latent": case.tensors[item["tensor"]]}).apply_to(state, tools)
            state = noiser(state, args[f"stage{stage}_noise_scale"])
            results[f"out.stage{stage}_{stream}.latent"] = state.latent
            results[f"out.stage{stage}_{stream}.denoise_mask"] = state.denoise_mask
    return results


def normalized(case: Case, run: dict[str, Any]) -> Tensor:
    return normalized_noise(torch.empty(run["shape"]), torch.Generator().manual_seed(run["seed"]))


def attention_mask(case: Case, run: dict[str, Any]) -> Tensor:
    cross = read(case, run, "cross")
    assert cross.shape[1] == run["num_new_tokens"]
    existing = read(case, run, "existing") if run["has_existing"] else None
    return build_attention_mask(existing, cross, run["num_noisy_tokens"], run["num_existing_tokens"])


def downsampled_mask(case: Case, run: dict[str, Any]) -> Tensor:
    return downsample_mask_video_to_latent(read(case, run, "mask"), VideoLatentShape(*run["latent_shape"]))


# --- helpers


def frame_grid(case: Case) -> dict[str, Tensor]:
    frames = case.inputs["frames"].tolist()
    results = {"out.seconds_to_frames": torch.tensor([seconds_to_frames(**run) for run in case.args["seconds_runs"]])}
    for name in case.tensors:
        if given := re.fullmatch(r"out\.snapped_(\d+)", name):
            scale = SpatioTemporalScaleFactors(int(given[1]), 32, 32)
            results[name] = torch.tensor([scale.snap_frames(count) for count in frames])
    return results


def post_process(case: Case, run: dict[str, Any]) -> dict[str, Tensor]:
    denoised, mask, clean = (read(case, run, name) for name in ("denoised", "denoise_mask", "clean"))
    sigma = torch.full((mask.shape[0],), case.args["sigma"])
    return {
        "blended": post_process_latent(denoised, mask, clean),
        "timesteps": timesteps_from_mask(mask, sigma),
        "timesteps_scalar": timesteps_from_mask(mask, case.args["sigma_scalar"]),
    }


def keyframe_positions(case: Case, run: dict[str, Any]) -> Tensor:
    positions = evenly_spaced_keyframe_positions(run["num_keyframes"], run["num_frames"])
    return torch.tensor(positions, dtype=torch.int64)


def tiling_splits(case: Case) -> dict[str, Tensor]:
    results: dict[str, Tensor] = {}
    for run in case.args["runs"]:
        name = f"out.{run['name']}"
        if run["kind"] == "trapezoid":
            ramps = run["ramp_left"], run["ramp_right"]
            results[name] = trapezoidal_mask_1d(run["length"], *ramps, run["left_starts_from_0"])
            continue
        if run["kind"] == "by_count":
            intervals = split_by_count(run["dim"], run["num_tiles"], run["overlap"])
            masks = [trapezoidal_mask_1d(each.length, each.left_ramp, each.right_ramp) for each in intervals]
            results |= {f"{name}.mask{j}": mask for j, mask in enumerate(masks)}
            total = torch.zeros(run["dim"])
            for each, mask in zip(intervals, masks, strict=True):
                total[each.start : each.end] += mask
            assert (total - 1).abs().max() <= run["mask_sum_max_error"] + 1e-6
        else:
            intervals = split_by_size(run["dim"], run["size"], run["overlap"], run.get("min_tile_size"))
            intervals = causal(intervals) if run["kind"] == "temporal_causal" else intervals
        results[name] = torch.tensor([[each.start, each.end, each.left_ramp, each.right_ramp] for each in intervals])
    return results


def tile_and_blend(case: Case) -> dict[str, Tensor]:
    given = case.inputs
    modality = Modality(
        latent=given["latent"],
        timesteps=given["timesteps"],
        positions=given["positions"],
        context=torch.zeros(given["latent"].shape[0], 1, 1),
        attention_mask=given.get("attention_mask"),
        keyframes_mask=given.get("keyframes_mask"),
    )
    tools = make_tools(case.args["tools"])
    assert isinstance(tools, VideoLatentTools)
    tiling = TileCountConfig(**{axis: (v["num_tiles"], v["overlap"]) for axis, v in case.args["tiling"].items()})
    helper = VideoModalityTilingHelper(tiling, tools)
    tiles = helper.tiles(modality.positions)
    boxes = [[[axis.start, axis.end] for axis in tile.box] for tile in tiles]
    assert boxes == [[box["frames"], box["height"], box["width"]] for box in case.args["tiles"]]
    results: dict[str, Tensor] = {}
    blended = torch.zeros_like(modality.latent)
    for i, tile in enumerate(tiles):
        part = helper.tile_modality(modality, tile)
        raw = helper.tile_modality(modality, tile, normalize_positions=False)
        named = {
            f"out.tile{i}.keep_indices": tile.keep_indices,
            f"out.tile{i}.cond_blend_weights": tile.blend_weights[tile.num_generated :],
            f"out.tile{i}.positions": part.positions,
            f"out.tile{i}.keyframes_mask": part.keyframes_mask,
            f"out.tile{i}.timesteps": part.timesteps,
            f"mid.tile{i}.latent": part.latent,
            f"mid.tile{i}.attention_mask": part.attention_mask,
            f"mid.tile{i}.positions_raw": raw.positions,
        }
        results |= {name: value for name, value in named.items() if value is not None and name in case.tensors}
        helper.blend(part.latent * 2 + i, tile, blended)
    return results | {"out.blended": blended}


OPERATIONS: dict[tuple[str, str], Operation] = {
    ("types", "shapes"): shapes,
    ("types", "scale_factors_from_blocks"): scale_factors,
    ("patchifiers", "video"): per_run(patchify_video),
    ("patchifiers", "audio"): per_run(patchify_audio),
    ("patchifiers", "video.positions"): per_run(positions_video),
    ("patchifiers", "audio.positions"): per_run(positions_audio),
    ("schedulers", "ltx2"): per_run(ltx2_schedule),
    ("schedulers", "linear_quadratic"): per_run(lambda case, run: LinearQuadraticScheduler().execute(**arguments(run))),
    ("schedulers", "beta"): per_run(lambda case, run: BetaScheduler().execute(**arguments(run))),
    ("schedulers", "distilled_tables"): distilled_tables,
    ("utils", "velocity_denoised"): velocity_denoised,
    ("steps", "euler"): euler_steps,
    ("steps", "euler_ancestral"): per_run(euler_ancestral_step),
    ("steps", "euler_cfg_pp"): per_run(euler_cfg_pp_step),
    ("steps", "res2s"): per_run(res2s_step),
    ("steps", "res2s.sde_coeff"): per_run(res2s_sde_coeff),
    ("steps", "heun"): heun_steps,
    ("guiders", "cfg"): single_guider(CFGGuider),
    ("guiders", "cfg_star"): single_guider(CFGStarRescalingGuider),
    ("guiders", "stg"): single_guider(STGGuider),
    ("guiders", "apg"): single_guider(LtxAPGGuider),
    ("guiders", "legacy_apg"): per_run(legacy_apg),
    ("guiders", "multimodal.calculate"): per_run(multimodal_guider),
    ("guiders", "multimodal.tables"): guider_tables,
    ("perturbations", "masks"): per_run(perturbation_masks),
    ("conditioning", "apply"): apply_items,
    ("noiser", "gaussian"): per_run(gaussian_noise),
    ("noiser", "noised_state_order"): noised_state_order,
    ("mask_utils", "build_attention_mask"): per_run(attention_mask),
    ("helpers", "downsample_mask_video_to_latent"): per_run(downsampled_mask),
    ("helpers", "conform_latent_length"): per_run(
        lambda case, run: conform_latent_length(case.inputs[run["name"]], run["frames"])
    ),
    ("helpers", "temporal_subsample"): per_run(
        lambda case, run: temporal_subsample(case.inputs[run["name"]], run["temporal_scale_factor"])
    ),
    ("helpers", "frame_grid"): frame_grid,
    ("helpers", "evenly_spaced_keyframe_positions"): per_run(keyframe_positions),
    ("helpers", "post_process_and_timesteps"): per_run(post_process),
    ("tiling", "splits"): tiling_splits,
    ("modality_tiling", "tile_and_blend"): tile_and_blend,
    ("samplers", "normalized_noise"): per_run(normalized),
    ("samplers", "res2s_coefficients"): res2s_solver_coefficients,
    ("denoisers", "simple"): sampling_cases.one_call,
    ("denoisers", "guided"): sampling_cases.one_call,
    ("denoisers", "factory"): sampling_cases.one_call,
    **{("samplers", name): sampling_cases.whole_run for name in sampling_cases.LOOPS},
}
