"""The configuration: what loads, what is refused and in which words, and the schema made from it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from ltx_core.errors import ConfigError
from ltx_trainer.config import OPTIMIZER_PARAMETERS, SAMPLER_PARAMETERS, TrainerConfig
from ltx_trainer.config_file import InvalidConfig, parse_config, read_config, write_config
from ltx_trainer.config_schema import schema_markdown, walk
from ltx_trainer.model_files import is_split_transformer


@pytest.fixture
def raw(tmp_path: Path) -> dict:
    (tmp_path / "model.safetensors").touch()
    for name in ("latents", "conditions"):
        (tmp_path / "data" / name).mkdir(parents=True)
    return {
        "model": {"model_path": str(tmp_path / "model.safetensors")},
        "lora": {"rank": 8, "alpha": 4},
        "training_strategy": {"name": "flexible", "video": {"is_generated": True, "latents_dir": "latents"}},
        "data": {"preprocessed_data_root": str(tmp_path / "data")},
        "output_dir": str(tmp_path / "out"),
    }


def problems(raw: dict) -> list[tuple[str, str]]:
    with pytest.raises(InvalidConfig) as caught:
        parse_config(raw)
    assert isinstance(caught.value, ConfigError)
    return list(caught.value.problems)


@pytest.mark.parametrize(
    ("section", "key", "advice"),
    [
        ("optimization", "lr", "did you mean learning_rate?"),
        ("optimization", "learning_rat", "did you mean learning_rate?"),
        ("optimization", "keep_last_n", "did you mean checkpoints.keep_last_n?"),
        ("lora", "xyz", "expected one of type, rank, alpha, dropout, target_modules, factor, groups"),
        ("validation", "infernce_steps", "did you mean inference_steps?"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_name(raw, section, key, advice):
    raw.setdefault(section, {})[key] = 1
    assert problems(raw) == [(f"{section}.{key}", f"unknown key; {advice}")]


def test_an_unknown_key_below_a_tagged_union_gets_advice_from_its_own_model(raw):
    raw["training_strategy"]["video"]["conditions"] = [{"type": "prefix", "temporal_boundry": 2}]
    found = dict(problems(raw))
    where = "training_strategy.flexible.video.conditions.0.prefix"
    assert found[f"{where}.temporal_boundry"] == "unknown key; did you mean temporal_boundary?"
    assert found[f"{where}.temporal_boundary"] == "Field required"


def test_every_problem_has_its_line(raw):
    raw["lora"]["rank"] = 1
    raw["wrong"] = 1
    raw["optimization"] = {"scheduler_type": "cosin"}
    with pytest.raises(InvalidConfig) as caught:
        parse_config(raw, "run.yaml")
    lines = str(caught.value).splitlines()
    assert lines[0] == "run.yaml:" and len(lines) == 4
    assert "  lora.rank: is 1: Input should be greater than or equal to 2" in lines
    assert any(
        "optimization.scheduler_type: is cosin, expected constant" in line and line.endswith("nearest valid: cosine")
        for line in lines
    )


@pytest.mark.parametrize(
    ("section", "values", "where", "says"),
    [
        ("optimization", {"batch_size": 0}, "batch_size", "is 0: Input should be greater than 0"),
        ("optimization", {"gradient_accumulation_steps": 0}, "gradient_accumulation_steps", "is 0: Input"),
        ("optimization", {"learning_rate": -1e-4}, "learning_rate", "is -0.0001: Input should be greater than 0"),
        ("optimization", {"steps": 0}, "steps", "is 0: Input"),
        ("optimization", {"optimizer_type": "adamv"}, "optimizer_type", "nearest valid: adamw"),
        ("optimization", {"optimizer_params": {"weight_decai": 0.1}}, "", "nearest valid: weight_decay"),
        ("optimization", {"scheduler_type": "cosine", "scheduler_params": {"eta_mn": 0}}, "", "nearest valid: eta_min"),
        ("flow_matching", {"timestep_sampling_params": {"sdt": 1}}, "", "nearest valid: std"),
        ("flow_matching", {"timestep_sampling_mode": "unifrom"}, "timestep_sampling_mode", "nearest valid: uniform"),
        ("training_strategy", {"name": "flexibel"}, "", "nearest valid: flexible"),
        ("acceleration", {"quantization": "int8-quant"}, "quantization", "nearest valid: int8-quanto"),
        ("data", {"preprocessed_data_root": None, "sets": [{"path": "nowhere"}]}, "sets.0.path", "nowhere does not"),
    ],
)
def test_a_wrong_setting_is_one_line_with_the_nearest_name(raw, section, values, where, says):
    raw[section] = {**raw.get(section, {}), **values}
    [(location, message)] = problems(raw)
    assert location == f"{section}.{where}".rstrip(".") and says in message and "\n" not in message


def test_an_unknown_condition_is_one_line_with_the_nearest_name(raw):
    raw["training_strategy"]["video"]["conditions"] = [{"type": "refrence", "latents_dir": "x"}]
    [(location, message)] = problems(raw)
    assert location.endswith("conditions.0") and message.endswith("nearest valid: reference")


def test_settings_are_changed_from_the_command_line(raw, tmp_path):
    (tmp_path / "run.yaml").write_text(yaml.dump(raw))
    changes = ["optimization.steps=7", "training_strategy.video.is_generated=true", "acceleration.quantization=null"]
    assert read_config(tmp_path / "run.yaml", changes).optimization.steps == 7
    with pytest.raises(InvalidConfig, match=r"optimization.stepz: unknown key; did you mean steps\?"):
        read_config(tmp_path / "run.yaml", ["optimization.stepz=7"])
    with pytest.raises(ConfigError, match="expected a key and a value"):
        read_config(tmp_path / "run.yaml", ["steps"])


def test_known_parameters_are_those_that_are_taken():
    import inspect

    import torch

    from ltx_trainer.muon import Muon
    from ltx_trainer.timestep_samplers import TIMESTEP_SAMPLERS

    for kind, sampler in TIMESTEP_SAMPLERS.items():
        assert set(SAMPLER_PARAMETERS[kind]) == set(sampler.__dataclass_fields__)
    for kind, optimizer in (("adamw", torch.optim.AdamW), ("muon", Muon)):
        assert set(OPTIMIZER_PARAMETERS[kind]) == set(inspect.signature(optimizer).parameters) - {
            "params", "module", "lr"}  # fmt: skip


def test_a_launcher_that_started_one_process_of_several_is_refused(monkeypatch):
    from ltx_trainer.train_cli import check_launch

    for name in ("WORLD_SIZE", "PMI_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    monkeypatch.delenv("MASTER_PORT", raising=False)
    check_launch()
    monkeypatch.setenv("MASTER_PORT", "29500")
    with pytest.raises(ConfigError, match="asked for several processes and started one"):
        check_launch()
    monkeypatch.setenv("WORLD_SIZE", "2")
    check_launch()


def test_numbers_may_be_text(raw):
    restarts = {"scheduler_type": "cosine_with_restarts", "scheduler_params": {"eta_min": "1e-6", "T_0": 10}}
    raw["optimization"] = {"learning_rate": "2e-4", **restarts}
    optimization = parse_config(raw).optimization
    assert optimization.learning_rate == 2e-4
    assert optimization.scheduler_params == {"eta_min": 1e-6, "T_0": 10}


def test_a_data_set_root_is_told_apart_from_its_precomputed_folder(raw, tmp_path):
    (tmp_path / "data").rename(tmp_path / ".precomputed")
    raw["data"]["preprocessed_data_root"] = str(tmp_path)
    [(location, message)] = problems(raw)
    assert location == "" and str(tmp_path / ".precomputed") in message


def test_full_training_cannot_be_quantised_and_a_lora_has_no_trainable_modules(raw):
    raw["acceleration"] = {"quantization": "int8-quanto"}
    assert parse_config(raw).acceleration.quantization == "int8-quanto"
    raw["model"]["training_mode"] = "full"
    assert "int8-quanto" in problems(raw)[0][1]
    raw["model"]["training_mode"], raw["acceleration"] = "lora", {}
    raw["model"]["trainable_modules"] = ["attn1"]
    assert "lora.target_modules" in problems(raw)[0][1]


def test_a_written_configuration_reads_back_equal(raw, tmp_path):
    raw["validation"] = {"samples": [{"prompt": "a fox — café", "video_dims": [64, 64, 9]}]}
    config = parse_config(raw)
    write_config(config, tmp_path / "deep" / "training_config.yaml")
    assert read_config(tmp_path / "deep" / "training_config.yaml") == config


def test_yaml_with_tuple_tags_loads_and_other_tags_do_not(raw, tmp_path):
    raw["validation"] = {"video_dims": (64, 64, 9)}
    text = yaml.dump(raw)
    assert "python/tuple" in text
    (tmp_path / "run.yaml").write_text(text)
    assert read_config(tmp_path / "run.yaml").validation.video_dims == (64, 64, 9)
    (tmp_path / "evil.yaml").write_text("!!python/object/apply:os.system ['true']")
    with pytest.raises(ConfigError, match=r"evil\.yaml: it is no YAML"):
        read_config(tmp_path / "evil.yaml")


def test_files_that_are_no_configuration(tmp_path):
    with pytest.raises(ConfigError, match=r"cannot read .*none\.yaml: No such file"):
        read_config(tmp_path / "none.yaml")
    (tmp_path / "list.yaml").write_text("- 1\n- 2")
    with pytest.raises(ConfigError, match="holds a list, expected sections"):
        read_config(tmp_path / "list.yaml")
    (tmp_path / "broken.yaml").write_text("model: [1")
    with pytest.raises(ConfigError, match="it is no YAML") as caught:
        read_config(tmp_path / "broken.yaml")
    assert "\n" not in str(caught.value)


def test_the_schema_documents_every_key_with_its_default():
    text = schema_markdown(TrainerConfig)
    for path, _ in walk(TrainerConfig):
        assert f"\n| {path.rpartition('.')[2]} | " in text, path
    assert "| learning_rate | number > 0 | 0.0005 |" in text
    assert "| rank | whole number >= 2 | 64 |" in text
    assert "## training_strategy.video.conditions (keyframe)" in text
    tables = [line for line in text.splitlines() if line.startswith("| ")]
    assert all(line.replace("\\|", "").count("|") == 5 for line in tables)


def test_reading_the_configuration_imports_no_torch():
    code = "import sys, ltx_trainer.config, ltx_trainer.cli; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"


def test_what_counts_as_a_split_transformer():
    assert is_split_transformer({"transformer": {}})
    assert not is_split_transformer({"transformer": {}, "vocoder": {}})
    assert not is_split_transformer({"vae": {}})
