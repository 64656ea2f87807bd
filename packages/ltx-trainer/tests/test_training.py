"""The transformer's training: what it learns from, how it fits in memory, what it leaves behind."""

from __future__ import annotations

import dataclasses
import json
import math
from concurrent.futures import ProcessPoolExecutor

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tests.tiny_training import (
    CHANNELS,
    FRAMES,
    SIDE,
    STEPS,
    TOKENS,
    make_config,
    processes,
    raw_config,
    run_training,
    write_dataset,
    write_model,
)
from torch import nn

from ltx_core.errors import CheckpointError, ConfigError
from ltx_core.loader.checkpoint import Checkpoint
from ltx_core.model.transformer.model import LTXModel
from ltx_trainer.datasets import collate
from ltx_trainer.draws import step_draws
from ltx_trainer.lora import lora_layers
from ltx_trainer.memory import BlockSwap, QuantizedLinear, quantize_frozen
from ltx_trainer.memory_plan import plan_memory
from ltx_trainer.run_log import LOG_NAME, read_csv_log
from ltx_trainer.trainer import LtxvTrainer


@pytest.fixture
def files(tmp_path):
    return write_model(tmp_path / "model.safetensors", layers=2), write_dataset(tmp_path / "data", count=6, silent=2)


def trainer_of(files, tmp_path, **changes):
    return LtxvTrainer(make_config(*files, tmp_path / "out", **changes))


def batch_of(trainer, *indices):
    return collate([trainer.dataset[index] for index in indices])


def loss_of(trainer, batch, step=0):
    return trainer.objective(batch, step_draws("cpu", 0, step))


def gradients(trainer, batch):
    trainer.objective.zero_grad(set_to_none=True)
    loss_of(trainer, batch)["loss"].backward()
    return {n: p.grad.clone() for n, p in trainer.transformer.named_parameters() if p.grad is not None}


class TestObjective:
    def test_connectors_are_frozen_and_get_no_gradient(self, files, tmp_path):
        trainer = trainer_of(files, tmp_path, model={"training_mode": "full"})
        found = gradients(trainer, batch_of(trainer, 0, 1))
        assert found
        assert all(p.grad is None and not p.requires_grad for p in trainer.objective.connectors.parameters())

    def test_only_valid_caption_tokens_count(self, files, tmp_path):
        trainer = trainer_of(files, tmp_path)
        batch = batch_of(trainer, 0)
        changed = batch_of(trainer, 0)
        changed["conditions"]["video_prompt_embeds"][:, :3] = 100.0  # padding
        assert torch.equal(loss_of(trainer, batch)["loss"], loss_of(trainer, changed)["loss"])
        changed["conditions"]["video_prompt_embeds"][:, -1] += 1.0
        assert not torch.equal(loss_of(trainer, batch)["loss"], loss_of(trainer, changed)["loss"])

    def test_an_example_without_sound_takes_no_audio_loss_and_its_video_does_not_hear(self, files, tmp_path):
        trainer = trainer_of(files, tmp_path, lora={"rank": 2, "alpha": 2})
        silent = batch_of(trainer, 5)
        assert silent["audio_latents"]["present"].tolist() == [0]
        losses = loss_of(trainer, silent)
        assert losses["loss"] == losses["loss_video"] and losses["loss_audio"] == 0
        louder = batch_of(trainer, 5)
        louder["audio_latents"]["latents"] += 3.0
        assert torch.equal(loss_of(trainer, louder)["loss"], losses["loss"])
        louder["audio_latents"]["present"][:] = 1
        assert not torch.equal(loss_of(trainer, louder)["loss_video"], losses["loss_video"])

    def test_losses_are_means_over_the_examples_that_have_the_modality(self, files, tmp_path):
        trainer = trainer_of(files, tmp_path)
        losses = loss_of(trainer, batch_of(trainer, 0, 5))
        sigmas = trainer.objective.sigma_losses()
        assert [len(sigmas[name][0]) for name in ("video", "audio")] == [2, 1]
        assert losses["loss_audio"].item() == pytest.approx(sigmas["audio"][1][0])
        total = (sum(sigmas["video"][1]) + sigmas["audio"][1][0]) / 2
        assert float(losses["loss"]) == pytest.approx(total)

    def test_modalities_draw_their_own_noise_levels_and_weights_scale_their_losses(self, files, tmp_path):
        weighted = {
            "name": "flexible",
            "video": {"is_generated": True, "latents_dir": "latents", "loss_weight": 0.5},
            "audio": {"is_generated": True, "latents_dir": "audio_latents", "loss_weight": 3.0},
        }
        trainer = trainer_of(files, tmp_path, training_strategy=weighted)
        losses = loss_of(trainer, batch_of(trainer, 0))
        levels = trainer.objective.sigma_losses()
        assert levels["video"][0] != levels["audio"][0]
        assert float(losses["loss"]) == pytest.approx(float(0.5 * losses["loss_video"] + 3 * losses["loss_audio"]))

    def test_captions_are_dropped_with_the_given_probability(self, files, tmp_path):
        with pytest.raises(ConfigError, match=r"caption dropout needs .*empty_caption.safetensors"):
            _ = trainer_of(files, tmp_path, optimization={"caption_dropout": 0.5}).objective
        from ltx_trainer.precomputed import write_record

        empty = {
            "video_prompt_embeds": torch.zeros(TOKENS, 16),
            "audio_prompt_embeds": torch.zeros(TOKENS, 8),
            "prompt_attention_mask": torch.tensor([0] * (TOKENS - 1) + [1]),
        }
        write_record(files[1] / "empty_caption.safetensors", empty)
        trainer = trainer_of(files, tmp_path, optimization={"caption_dropout": 0.5})
        seen = []
        contexts = trainer.objective.contexts
        trainer.objective.contexts = lambda conditions: seen.append(conditions) or contexts(conditions)
        for step in range(30):
            loss_of(trainer, batch_of(trainer, 0, 1), step)
        dropped = torch.cat([one["prompt_attention_mask"].sum(1) == 1 for one in seen])
        assert 15 < int(dropped.sum()) < 45
        zeros = torch.cat([one["video_prompt_embeds"].abs().sum((1, 2)) == 0 for one in seen])
        assert torch.equal(dropped, zeros)

    def test_the_first_latent_frame_is_marked_behind_references(self, files, tmp_path):
        trainer = trainer_of(files, tmp_path)
        from ltx_trainer.training_strategies.inputs import velocity_inputs, video_tokens

        batch = batch_of(trainer, 0, 1)
        tokens = video_tokens(
            batch["latents" if "latents" in batch else "video_latents"], trainer.files.scale_factors()
        )
        inputs = velocity_inputs(tokens, torch.tensor([0.5, 0.5]), torch.zeros_like(tokens.clean))
        assert inputs.first_frame_mask()[0, :, 0].nonzero().flatten().tolist() == [0, 1, 2, 3]
        referred = inputs.with_reference(
            dataclasses.replace(tokens, clean=tokens.clean[:, :5], positions=tokens.positions[:, :, :5])
        )
        assert referred.first_frame_mask()[1, :, 0].nonzero().flatten().tolist() == [5, 6, 7, 8]


class TestMemory:
    def test_recomputed_activations_change_no_gradient(self, files, tmp_path):
        plain, frugal = (
            trainer_of(files, tmp_path, optimization={"enable_gradient_checkpointing": flag}) for flag in (False, True)
        )
        frugal.transformer.train()
        batch = batch_of(plain, 0, 5)
        for (name, want), got in zip(gradients(plain, batch).items(), gradients(frugal, batch).values(), strict=True):
            torch.testing.assert_close(got, want, msg=name)

    def test_swapped_blocks_change_no_gradient_and_leave_the_device(self, files, tmp_path):
        plain, swapped = (trainer_of(files, tmp_path, acceleration={"blocks_to_swap": n}) for n in (0, 2))
        plain.transformer.train(), swapped.transformer.train()
        assert swapped.transformer.gradient_checkpointing
        resting = {n: id(p) for n, p in swapped.transformer.named_parameters()}
        batch = batch_of(plain, 0, 1)
        for (name, want), got in zip(gradients(plain, batch).items(), gradients(swapped, batch).values(), strict=True):
            torch.testing.assert_close(got, want, msg=name)
        assert resting == {n: id(p) for n, p in swapped.transformer.named_parameters()}

    def test_more_blocks_than_there_are_cannot_be_swapped(self, files, tmp_path):
        with pytest.raises(ConfigError, match="blocks_to_swap is 3, the transformer has 2 blocks"):
            BlockSwap(trainer_of(files, tmp_path).transformer, 3, torch.device("cpu"))
        with pytest.raises(ConfigError, match="blocks that are trained stay on the device"):
            _ = trainer_of(
                files, tmp_path, model={"training_mode": "full"}, acceleration={"blocks_to_swap": 1}
            ).transformer

    @pytest.mark.parametrize("kind", ["int8-quanto", "fp8-quanto"])
    def test_an_8_bit_base_is_close_and_passes_gradients_on(self, files, tmp_path, kind):
        plain = trainer_of(files, tmp_path)
        eight = trainer_of(files, tmp_path, acceleration={"quantization": kind})
        batch = batch_of(plain, 0, 1)
        want, got = loss_of(plain, batch)["loss"], loss_of(eight, batch)["loss"]
        assert got != want and float(got) == pytest.approx(float(want), rel=0.02)
        for _, layer in lora_layers(eight.transformer):
            assert isinstance(layer.base, QuantizedLinear) and layer.base.weight.dtype.itemsize == 1
        pairs = zip(gradients(plain, batch).values(), gradients(eight, batch).values(), strict=True)
        similarity = [torch.cosine_similarity(a.flatten(), b.flatten(), dim=0) for a, b in pairs if a.abs().max() > 0]
        assert min(similarity) > 0.9

    def test_a_quantised_weight_is_the_nearest_the_format_has(self):
        network = nn.Module()
        network.blocks = nn.ModuleList([nn.Linear(8, 4)])
        network.BLOCK_LIST = "blocks"
        weight = network.blocks[0].weight.detach().clone()
        assert quantize_frozen(network, "int8-quanto") == 1
        quantized = network.blocks[0]
        error = (quantized.weight.float() * quantized.weight_scale - weight).abs()
        assert bool((error <= quantized.weight_scale / 2 + 1e-7).all())

    def test_formats_below_8_bits_are_refused(self, files, tmp_path):
        with pytest.raises(
            ConfigError, match="quantization is 'int4-quanto', which is not built; nearest: 'int8-quanto'"
        ):
            _ = trainer_of(files, tmp_path, acceleration={"quantization": "int4-quanto"}).transformer

    def test_mixed_precision_trains_a_bf16_base(self, files, tmp_path):
        trainer = trainer_of(
            files,
            tmp_path,
            optimization={"enable_gradient_checkpointing": True},
            acceleration={"mixed_precision_mode": "bf16", "quantization": "int8-quanto", "blocks_to_swap": 1},
        )
        assert trainer.train(live=False).step == 3
        assert trainer.transformer.patchify_proj.weight.dtype == torch.bfloat16
        with torch.autocast("cpu", torch.bfloat16):
            assert loss_of(trainer, batch_of(trainer, 0))["loss"].dtype == torch.float32

    def test_the_scale_of_float16_losses_is_undone(self, files, tmp_path):
        plain, scaled = (LtxvTrainer(make_config(*files, tmp_path / name)) for name in ("plain", "scaled"))
        want = next(plain.steps())
        scaled.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        got = next(scaled.steps())
        assert got.grad_norm == pytest.approx(want.grad_norm, rel=1e-4)
        assert scaled.accelerator.scaler.get_scale() == 1024


class TestPlan:
    def test_the_plan_counts_what_the_run_holds(self, files, tmp_path):
        config = make_config(*files, tmp_path / "out", optimization={"ema_decay": 0.9})
        plan = {item.name: item for item in plan_memory(config).items}
        trainer = LtxvTrainer(config)
        trained = sum(p.numel() for p in trainer.transformer.parameters() if p.requires_grad)
        frozen = sum(p.numel() for p in trainer.transformer.parameters() if not p.requires_grad)
        assert plan_memory(config).trained == trained
        assert plan["transformer"].device == frozen * 4
        assert plan["trained weights"].device == plan["gradients"].device == trained * 4 == plan["average (EMA)"].device
        assert plan["optimizer"].device == trained * 8
        assert plan["connectors"].device == sum(p.numel() * 4 for p in trainer.objective.connectors.parameters())
        assert plan_memory(config).tokens == 2 * (FRAMES * SIDE * SIDE + STEPS)
        assert plan_memory(config).lines()[-2].startswith("together")

    def test_gradients_take_the_place_of_activations_unless_they_are_summed(self, files, tmp_path):
        def plan(count):
            model = {"training_mode": "full"}
            options = {"gradient_accumulation_steps": count}
            return plan_memory(make_config(*files, tmp_path / "out", model=model, optimization=options))

        once, summed = plan(1), plan(2)
        items = {item.name: item.device for item in once.items}
        assert summed.device - once.device == min(items["gradients"], items["activations"]) > 0

    def test_swapping_quantising_and_recomputing_take_less(self, files, tmp_path):
        def device(**acceleration):
            return plan_memory(make_config(*files, tmp_path / "out", acceleration=acceleration)).device

        assert device(quantization="int8-quanto") < device()
        assert device(blocks_to_swap=2) < device()
        swapped = plan_memory(make_config(*files, tmp_path / "out", acceleration={"blocks_to_swap": 1}))
        assert swapped.host > 0

    def test_chosen_modules_are_counted(self, files, tmp_path):
        model = {"training_mode": "full", "trainable_modules": ["ff"]}
        config = make_config(*files, tmp_path / "out", model=model)
        network = LtxvTrainer(config).transformer
        assert plan_memory(config).trained == sum(p.numel() for p in network.parameters() if p.requires_grad) > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["LoRA", "LoRA, recomputing", "LoRA, int8 base", "full"])
def test_the_plan_is_near_the_measured_peak(tmp_path, monkeypatch, name):
    """In a process of its own whose allocator gives back what is freed, on the CPU."""
    from multiprocessing import get_context

    from benchmarks import train_step

    for key, value in (("MALLOC_MMAP_THRESHOLD_", "65536"), ("MALLOC_TRIM_THRESHOLD_", "65536")):
        monkeypatch.setenv(key, value)
    monkeypatch.setenv("MALLOC_ARENA_MAX", "1")
    arguments = train_step.parser().parse_args(["--width=256", "--steps=1", "--size", "5", "8", "12", "--workers=0"])
    model = write_model(tmp_path / "m.safetensors", width=256, audio_width=256, layers=arguments.layers)
    data = train_step.write_examples(tmp_path / "data", 256, tuple(arguments.size))
    variant = next(variant for variant in train_step.VARIANTS if variant.name == name)
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        measured = pool.submit(train_step.measure, variant, model, data, arguments).result()
    assert measured.planned == pytest.approx(measured.peak, rel=0.15)


class TestWholeModel:
    def test_a_full_fine_tune_is_a_checkpoint_that_loads(self, files, tmp_path):
        model = {"training_mode": "full"}
        result = trainer_of(files, tmp_path, model=model, optimization={"learning_rate": 1e-2}).train(live=False)
        assert result.weights.name == "model_weights_step_00003.safetensors"
        tuned, base = Checkpoint.open(result.weights), Checkpoint.open(files[0])
        assert tuned.config["transformer"] == base.config["transformer"] and tuned.model_version == "2.3.0"
        assert {name.split(".")[0] for part in tuned.parts for name in part.tensors} == {"model"}
        network, before = tuned.build("transformer"), base.build("transformer")
        assert not torch.equal(network.proj_out.weight, before.proj_out.weight)
        again = LtxvTrainer(make_config(result.weights, files[1], tmp_path / "again", model=model))
        assert again.train(live=False).step == 3, "the file serves as model_path: its connectors are in it"

    def test_chosen_modules_are_trained_and_the_rest_is_as_it_was(self, files, tmp_path):
        model = {"training_mode": "full", "trainable_modules": ["audio_attn1", "proj_out"]}
        result = trainer_of(files, tmp_path, model=model, optimization={"learning_rate": 1e-2}).train(live=False)
        tuned, base = (Checkpoint.open(path).build("transformer").state_dict() for path in (result.weights, files[0]))
        changed = {name for name in base if not torch.equal(tuned[name], base[name])}
        assert changed and all("audio_attn1" in name or name.startswith("proj_out") for name in changed)
        with pytest.raises(ConfigError, match="trainable module 'atn1' matches no module"):
            _ = trainer_of(files, tmp_path, model={**model, "trainable_modules": ["atn1"]}).transformer

    def test_saved_weights_are_a_start_for_another_run(self, files, tmp_path):
        options = {"optimization": {"learning_rate": 1e-2}}
        first = trainer_of(files, tmp_path, **options)
        first.train(live=False)
        model = {"load_checkpoint": str(tmp_path / "out")}
        second = LtxvTrainer(make_config(*files, tmp_path / "second", model=model))
        for (name, want), (_, got) in zip(lora_layers(first.transformer), lora_layers(second.transformer), strict=True):
            torch.testing.assert_close(got.lora_B.weight, want.lora_B.weight, msg=name)

    def test_an_average_is_what_is_saved_and_validated(self, files, tmp_path):
        options = {"learning_rate": 1e-1, "ema_decay": 0.99, "steps": 3}
        trainer = trainer_of(files, tmp_path, optimization=options)
        result = trainer.train(live=False)
        name, layer = next(iter(lora_layers(trainer.transformer)))
        with safe_open(result.weights, "pt") as file:
            saved = file.get_tensor(f"diffusion_model.{name}.lora_A.weight")
        assert not torch.allclose(saved, layer.lora_A.weight, atol=1e-3)

    def test_a_higher_precision_of_saved_weights(self, files, tmp_path):
        result = trainer_of(files, tmp_path, checkpoints={"precision": "bfloat16"}).train(live=False)
        with safe_open(result.weights, "pt") as file:
            assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.bfloat16}  # noqa: SIM118
            assert (file.metadata() or {}) == {}


class TestLogs:
    def test_every_figure_is_in_the_csv_and_the_event_files(self, files, tmp_path):
        options = {"data": {"held_out_samples": 2}, "validation": {"interval": 2}}
        trainer_of(files, tmp_path, **options).train(live=False)
        rows = read_csv_log(tmp_path / "out" / LOG_NAME)
        names = {name for _, name, _ in rows}
        assert {"train/loss", "train/loss_video", "train/loss_audio", "train/learning_rate", "train/grad_norm"} <= names
        assert {f"val/loss_video_sigma_{s}" for s in ("1", "0.75", "0.5", "0.25")} <= names
        assert {step for step, name, _ in rows if name.startswith("val/")} == {0, 2}
        assert all(math.isfinite(value) for _, _, value in rows)
        assert list((tmp_path / "out" / "tensorboard").glob("events*"))
        assert (tmp_path / "out" / "training_config.yaml").is_file()

    def test_the_held_out_loss_repeats_and_leaves_the_run_alone(self, files, tmp_path):
        from ltx_trainer.held_out import held_out_losses

        trainer = trainer_of(files, tmp_path, data={"held_out_samples": 3})
        assert not set(trainer.held_out) & set(trainer.trained) and len(trainer.held_out) == 3
        strategy = trainer.objective.strategy
        first, second = (held_out_losses(trainer.objective, trainer.held_out_batches, 42) for _ in range(2))
        assert first == second and len(first) == 8
        assert trainer.objective.strategy is strategy

    def test_a_hub_upload_holds_weights_card_and_samples(self, files, tmp_path):
        from ltx_trainer.hub import write_model_folder

        trainer = trainer_of(files, tmp_path)
        result = trainer.train(live=False)
        sheet = tmp_path / "step_000003_1_sheet.png"
        sheet.write_bytes(b"png")
        write_model_folder(trainer.config, result.weights, [sheet], tmp_path / "upload")
        card = (tmp_path / "upload" / "README.md").read_text()
        assert "LoRA of rank 4" in card and "samples/step_000003_1_sheet.png" in card and "model.safetensors" in card
        assert (tmp_path / "upload" / "lora_weights_step_00003.safetensors").is_file()


class TestPickledTrees:
    def test_a_tree_of_pt_files_trains_without_conversion(self, files, tmp_path):
        root = tmp_path / "old" / ".precomputed"
        for index in range(2):
            shapes = {
                "latents/a": {
                    "latents": torch.randn(FRAMES * SIDE * SIDE, CHANNELS),  # patchified, as old files have it
                    "num_frames": FRAMES,
                    "height": SIDE,
                    "width": SIDE,
                    "fps": 24.0,
                },
                "conditions/a": {
                    "prompt_embeds": torch.randn(TOKENS, 16),
                    "prompt_attention_mask": torch.ones(TOKENS, dtype=torch.int64),
                },
            }
            for place, record in shapes.items():
                path = root / f"{place}{index}.pt"
                path.parent.mkdir(parents=True, exist_ok=True)
                torch.save(record, path)
        strategy = {"name": "text_to_video"}
        model = write_model(tmp_path / "square.safetensors", audio_width=16)
        config = make_config(model, root, tmp_path / "out", training_strategy=strategy, optimization={"steps": 1})
        assert LtxvTrainer(config).train(live=False).step == 1


class TestBadInput:
    def test_another_model_family_is_refused(self, files, tmp_path):
        with safe_open(files[0], "pt") as file:
            config = json.loads(file.metadata()["config"])
        config["transformer"]["_class_name"] = "Transformer3DModel"
        path = tmp_path / "ltxv.safetensors"
        save_file(load_file(files[0]), path, {"config": json.dumps(config)})
        with pytest.raises(CheckpointError, match="is an LTX-Video model, expected one of the LTX-2 family"):
            LtxvTrainer(make_config(path, files[1], tmp_path / "out"))

    def test_a_file_without_connectors_is_refused(self, files, tmp_path):
        with safe_open(files[0], "pt") as file:
            metadata = file.metadata()
        tensors = {name: tensor for name, tensor in load_file(files[0]).items() if "connector" not in name}
        save_file(tensors, tmp_path / "bare.safetensors", metadata)
        with pytest.raises(CheckpointError, match="lacks the text connectors"):
            _ = LtxvTrainer(make_config(tmp_path / "bare.safetensors", files[1], tmp_path / "out")).objective

    def test_samples_the_model_cannot_make_are_refused_before_anything_is_read(self, files, tmp_path):
        def validation(**sample):
            return {"validation": {"interval": 5, "samples": [{"prompt": "x", **sample}]}}

        with pytest.raises(ConfigError, match=r"validation.samples.0: width is 50, expected a multiple of 32"):
            trainer_of(files, tmp_path, **validation(video_dims=[50, 64, 9]))
        prefix = {"type": "prefix", "video": "a.mp4", "num_frames": 8}
        with pytest.raises(ConfigError, match=r"prefix num_frames is 8, expected 8k\+1"):
            trainer_of(files, tmp_path, **validation(video_dims=[64, 64, 17], conditions=[prefix]))
        with pytest.raises(ConfigError, match=r"validation.samples need model.text_encoder_path"):
            list(trainer_of(files, tmp_path, **validation(video_dims=[64, 64, 9])).steps())

    def test_an_optimizer_that_is_not_installed(self, files, tmp_path):
        with pytest.raises(ConfigError, match="needs `pip install bitsandbytes`"):
            trainer_of(files, tmp_path, optimization={"optimizer_type": "adamw8bit"}).train(live=False)


def launch(raw, count, tmp_path, port, **environment):
    """Run a configuration in ``count`` processes; returns the noise levels each of them saw, step by step."""
    context, notes = processes(), [tmp_path / f"notes_{count}_{rank}.jsonl" for rank in range(count)]
    shared = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(count),
        "ACCELERATE_USE_CPU": "true",
    }
    members = [
        context.Process(
            target=run_training,
            args=(
                raw,
                {**shared, "RANK": str(r), "LOCAL_RANK": str(r), "LOCAL_WORLD_SIZE": str(count), **environment},
                notes[r],
            ),
        )
        for r in range(count)
    ]
    for member in members:
        member.start()
    for member in members:
        member.join(200)
    assert [member.exitcode for member in members] == [0] * count
    return [[json.loads(line) for line in path.read_text().splitlines()] for path in notes]


def free_port():
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def curve(folder, name="train/loss"):
    return [value for _, key, value in read_csv_log(folder / LOG_NAME) if key == name]


LAUNCHES = {
    "replicated": {},
    "sharded": {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_RESHARD_AFTER_FORWARD": "true"},
}


@pytest.mark.parametrize("environment", LAUNCHES.values(), ids=LAUNCHES)
def test_two_processes_see_what_one_sees_with_twice_the_batch(files, tmp_path, environment):
    """Also when they are stopped after three steps and go on."""
    options = {"learning_rate": 1e-2, "gradient_accumulation_steps": 2, "scheduler_type": "constant", "ema_decay": 0.9}

    def raw(name, steps, batch):
        return raw_config(*files, tmp_path / name, optimization={**options, "steps": steps, "batch_size": batch})

    run_training(raw("one", 5, 4))
    for steps in (3, 5):
        levels = launch(raw("two", steps, 2), 2, tmp_path, free_port(), **environment)
    for name in ("train/loss", "train/loss_video", "train/learning_rate", "train/grad_norm"):
        assert curve(tmp_path / "two", name) == pytest.approx(curve(tmp_path / "one", name), rel=1e-5, abs=1e-5), name
    assert len(curve(tmp_path / "two")) == 5
    for one, other in zip(*levels, strict=True):
        assert not set(one["video"]) & set(other["video"]), "ranks drew the same noise level"
    saved = "checkpoints/lora_weights_step_00005.safetensors"
    one, two = (load_file(tmp_path / name / saved) for name in ("one", "two"))
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-3, atol=1e-4, msg=name)


def test_accelerator_state_is_a_run_own(files, tmp_path):
    assert isinstance(trainer_of(files, tmp_path, acceleration={"mixed_precision_mode": "bf16"}).transformer, LTXModel)
    assert trainer_of(files, tmp_path).transformer.patchify_proj.weight.dtype == torch.float32
