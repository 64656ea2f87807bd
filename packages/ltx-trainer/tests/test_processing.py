"""Data sets from clips: what is written, what is left out and why, and that nothing done is ever lost or done twice."""

from __future__ import annotations

import csv
import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tests.golden.case import TINY_CHECKPOINT
from typer.testing import CliRunner

from ltx_core.errors import CheckpointError, ConfigError, LtxError, MediaError
from ltx_core.loader.safetensors_file import SafetensorsFile
from ltx_core.types import Audio, SpatioTemporalScaleFactors
from ltx_media.audio import read_audio
from ltx_media.audio import write_wav as write_sound
from ltx_media.images import decode_image
from ltx_media.pixels import resize_and_crop
from ltx_media.video import probe_video, read_frames, read_frames_at
from ltx_media.writer import write_video
from ltx_trainer.cli import dataset as command
from ltx_trainer.datasets import BatchOrder, PrecomputedDataset, read_batches
from ltx_trainer.model_files import ModelFiles
from ltx_trainer.precomputed import read_record, read_values, write_record
from ltx_trainer.processing.buckets import parse_buckets, select_bucket
from ltx_trainer.processing.captioning import caption_media, find_media
from ltx_trainer.processing.captions import parse_answer
from ltx_trainer.processing.dataset import check_dataset, process_dataset
from ltx_trainer.processing.masks import audio_mask, video_mask
from ltx_trainer.processing.metadata import output_stem, read_rows
from ltx_trainer.processing.options import ProcessingOptions
from ltx_trainer.processing.tiles import encode_in_tiles
from ltx_trainer.processing.transformers_captioner import transformers_captioner

FACTORS = SpatioTemporalScaleFactors.default()
MODELS = ModelFiles.of(TINY_CHECKPOINT / "ltx-2-tiny.safetensors", TINY_CHECKPOINT / "gemma-3-tiny")
OPTIONS = ProcessingOptions(batch_size=2, trigger="TOK", remove_openings=True)
BUCKETS = "96x64x17;64x96x17;96x64x1"


def write_clip(path: Path, frames: int = 20, fps: float = 24.0, size: tuple[int, int] = (64, 96), sound: bool = True):
    """A clip that brightens by the frame, with a tone that grows louder."""
    pictures = [torch.full((*size, 3), 20 + 6 * index, dtype=torch.uint8) for index in range(frames)]
    time = torch.arange(round(frames / fps * 16000)) / 16000
    tone = torch.sin(2 * math.pi * 440 * time)[None] * time
    write_video(path, pictures, fps, Audio(tone, 16000) if sound else None)


def write_rows(path: Path, *rows: dict) -> Path:
    path.write_text(json.dumps(list(rows)))
    return path


def records(root: Path) -> dict[str, int]:
    """Modification times of all records."""
    return {str(path.relative_to(root)): path.stat().st_mtime_ns for path in sorted(root.rglob("*.safetensors"))}


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    write_clip(folder / "a.mp4")
    write_clip(folder / "sub" / "b.mp4", fps=30)
    write_clip(folder / "silent.mp4", size=(96, 64), sound=False)
    write_clip(folder / "short.mp4", frames=5)
    write_clip(folder / "reference.mp4", fps=12, sound=False)
    (folder / "broken.mp4").write_bytes(b"junk" * 100)
    Image.new("RGB", (100, 70), (200, 30, 40)).save(folder / "still.png")
    half = torch.zeros(64, 96, dtype=torch.uint8)
    half[:, 48:] = 255
    Image.fromarray(half.numpy()).save(folder / "mask.png")
    return folder


@pytest.fixture(scope="module")
def processed(clips, tmp_path_factory):
    """A data set with one of everything: its output folder and its report."""
    rows = [
        {
            "video": "a.mp4",
            "caption": "This video shows a",
            "reference_video": "reference.mp4",
            "video_mask": "mask.png",
        },
        {"video": "sub/b.mp4", "caption": "b"},
        {"video": "silent.mp4", "caption": "nothing is heard"},
        {"video": "still.png", "caption": ""},
        {"video": "short.mp4", "caption": "too short"},
        {"video": "broken.mp4", "caption": "broken"},
        {"video": "none.mp4", "caption": "not there"},
    ]
    output = tmp_path_factory.mktemp("out") / "set"
    return output, process_dataset(write_rows(clips / "all.json", *rows), MODELS, BUCKETS, OPTIONS, output)


class TestProcessing:
    def test_every_row_becomes_records_or_a_reason(self, processed):
        output, report = processed
        assert report.written == {
            "conditions": 7,
            "latents": 4,
            "reference_latents": 1,
            "video_masks": 1,
            "audio_latents": 4,
        }
        reasons = {row: reason for _, row, reason in report.skipped}
        assert reasons.keys() == {"short", "broken", "none"}
        assert "is 5 frames long, the shortest bucket has 17" in reasons["short"]
        assert "cannot read video: Invalid data" in reasons["broken"]
        assert "none.mp4: cannot read video: No such file" in reasons["none"]
        assert all("\n" not in line for line in report.lines())
        assert (output / "report.txt").read_text().splitlines() == report.lines()

    def test_the_report_describes_the_set(self, processed):
        notes = processed[1].notes
        assert "1 captions are blank" in notes
        assert "bucket 64x96x17: 1 clips" in notes and "bucket 96x64x17: 2 clips" in notes
        assert "frame rates are 24, 30: --fps makes them equal" in notes
        assert "2 clips are silent: kept, marked as such" in notes

    def test_records_say_what_they_are(self, processed):
        output, _ = processed
        video = read_record(output / "latents" / "a.safetensors")
        assert video["latents"].shape == (128, 3, 2, 3) and video["latents"].dtype == torch.bfloat16
        assert [video[key] for key in ("num_frames", "height", "width", "fps")] == [3, 2, 3, 24.0]
        sound = read_record(output / "audio_latents" / "a.safetensors")
        assert sound["latents"].dtype == torch.float32 and sound["latents"].shape[1] == sound["num_time_steps"]
        assert sound["duration"] == pytest.approx(17 / 24) and sound["present"] == 1
        assert read_values(output / "audio_latents" / "silent.safetensors")["present"] == 0
        assert read_values(output / "latents" / "still.safetensors")["fps"] == 1.0
        text = read_record(output / "conditions" / "a.safetensors")
        assert text["prompt_embeds"].shape[0] == 1024
        assert (output / "conditions" / "a.safetensors").stat().st_size < 64 * 1024
        assert read_record(output / "reference_latents" / "a.safetensors")["fps"] == 24.0
        mask = read_record(output / "video_masks" / "a.safetensors")["mask"]
        assert mask.tolist() == [[[0.0, 0.0, 1.0]] * 2] * 3  # the middle cell is half white, no more

    def test_training_reads_the_set(self, processed):
        output, _ = processed
        sources = {"conditions": "conditions", "latents": "video_latents", "audio_latents": "audio_latents"}
        data = PrecomputedDataset(output, sources)
        assert [str(path) for path in data.relative_paths()["video_latents"]] == [
            f"{name}.safetensors" for name in ("a", "silent", "still", "sub/b")
        ]
        order = BatchOrder.of(data, 2, 0)
        batches = read_batches(data, order)
        present = {
            int(i): int(p) for b in (next(batches) for _ in range(order.batches_per_epoch)) for i, p in _present(b)
        }
        assert present == {0: 1, 1: 0, 2: 0, 3: 1}
        assert data.empty_caption()["prompt_attention_mask"].sum() == 1  # the begin token alone

    def test_a_second_run_builds_no_network_and_writes_nothing(self, processed, clips, monkeypatch):
        output, _ = processed
        before = records(output)
        monkeypatch.setattr(ModelFiles, "build", lambda *args: pytest.fail("a network was built"))
        monkeypatch.setattr(ModelFiles, "text_encoder", lambda *args: pytest.fail("the text encoder was built"))
        report = process_dataset(clips / "all.json", MODELS, BUCKETS, OPTIONS, output)
        assert records(output) == before
        assert report.written.total() == 0 and report.present["latents"] == 4

    def test_a_text_encoder_in_8_bits_says_nearly_the_same_in_less_memory(self):
        encoders = [MODELS.text_encoder(torch.float32, "cpu", in_8bit) for in_8bit in (False, True)]
        exact, coarse = (encoder.features(["a red fox runs"]).video[0, -4:] for encoder in encoders)
        assert torch.cosine_similarity(exact.flatten(), coarse.flatten(), dim=0) > 0.99
        assert not torch.equal(exact, coarse)
        sizes = [sum(p.nbytes for p in encoder.backbone.layers.parameters()) for encoder in encoders]
        assert sizes[1] < 0.4 * sizes[0]

    def test_processes_of_a_launcher_take_every_other_row(self, clips, tmp_path, monkeypatch):
        rows = [{"video": name, "caption": name} for name in ("a.mp4", "sub/b.mp4", "silent.mp4")]
        path = write_rows(clips / "shared.json", *rows)
        monkeypatch.setenv("WORLD_SIZE", "2")
        found = []
        for rank in ("0", "1"):
            monkeypatch.setenv("RANK", rank)
            report = process_dataset(path, MODELS, BUCKETS, ProcessingOptions(), tmp_path)
            found.append((report.written["latents"], report.present["latents"]))
        assert found == [(2, 0), (1, 0)]


def _present(batch: dict) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return list(zip(batch["idx"], batch["audio_latents"]["present"], strict=True))


class TestNothingIsLost:
    def test_a_full_disk_stops_the_run_in_one_line_and_the_next_goes_on(self, clips, tmp_path, monkeypatch):
        path = write_rows(clips / "two.json", *({"video": n, "caption": n} for n in ("a.mp4", "sub/b.mp4")))
        from safetensors.torch import save_file

        written = []

        def almost_full(tensors, name, metadata):
            if len(written) == 4:
                raise OSError(28, "No space left on device")
            written.append(name)
            save_file(tensors, name, metadata)

        monkeypatch.setattr("safetensors.torch.save_file", almost_full)
        with pytest.raises(
            CheckpointError, match=r"cannot write .*latents/sub/b\.safetensors: .*No space left"
        ) as caught:
            process_dataset(path, MODELS, BUCKETS, ProcessingOptions(), tmp_path)
        assert "\n" not in str(caught.value)
        before = records(tmp_path)
        assert len(before) == 4  # the empty caption, two captions, one clip
        monkeypatch.undo()
        report = process_dataset(path, MODELS, BUCKETS, ProcessingOptions(), tmp_path)
        assert before.items() <= records(tmp_path).items()
        assert report.written == {"latents": 1, "audio_latents": 2}
        assert not list(tmp_path.rglob("*.tmp"))

    def test_overwrite_makes_records_again(self, clips, tmp_path):
        path = write_rows(clips / "one.json", {"video": "a.mp4", "caption": "a"})
        process_dataset(path, MODELS, BUCKETS, ProcessingOptions(), tmp_path)
        before = records(tmp_path)
        report = process_dataset(path, MODELS, BUCKETS, ProcessingOptions(overwrite=True), tmp_path)
        assert report.written["latents"] == 1 and report.present.total() == 0
        assert all(records(tmp_path)[name] > time for name, time in before.items())


class TestWhatTheTableSays:
    """A record whose caption, trigger, clip, rate or bucket changed is made again; what no table names is not read."""

    @pytest.fixture
    def folder(self, clips, tmp_path) -> Path:
        for name in ("a.mp4", "silent.mp4"):
            shutil.copy(clips / name, tmp_path / name)
        write_rows(tmp_path / "t.json", {"video": "a.mp4", "caption": "a"}, {"video": "silent.mp4", "caption": "s"})
        self.run(tmp_path)
        return tmp_path

    def run(self, folder: Path, buckets: str = BUCKETS, **options):
        options = ProcessingOptions(skip_audio=True, **options)
        return process_dataset(folder / "t.json", MODELS, buckets, options, folder / "out")

    def test_a_changed_input_makes_its_record_again_and_no_other(self, folder, clips):
        assert not self.run(folder).written
        write_rows(folder / "t.json", {"video": "a.mp4", "caption": "b"}, {"video": "silent.mp4", "caption": "s"})
        report = self.run(folder)
        assert report.written == {"conditions": 1} and "conditions: 1 made again, another caption" in report.lines()
        assert self.run(folder, trigger="TOK").stale == {("conditions", "trigger"): 2}
        shutil.copy(clips / "sub" / "b.mp4", folder / "a.mp4")
        assert self.run(folder, trigger="TOK").stale == {("latents", "file"): 1}
        assert self.run(folder, trigger="TOK", fps=15.0, buckets="96x64x9;64x96x9").stale == {("latents", "rate"): 2}
        assert self.run(folder, trigger="TOK", fps=15.0, buckets="96x64x9").stale == {("latents", "buckets"): 2}

    def test_a_clip_that_is_gone_keeps_its_record_and_one_that_broke_loses_it(self, folder):
        (folder / "a.mp4").unlink()
        (folder / "silent.mp4").write_bytes(b"junk")
        report = self.run(folder)
        assert report.present["latents"] == 1 and [row for _, row, _ in report.skipped] == ["silent"]
        assert [path.name for path in (folder / "out" / "latents").iterdir()] == ["a.safetensors"]

    def test_a_model_without_an_encoder_is_refused_and_takes_no_record(self, folder, tmp_path):
        tensors = load_file(MODELS.model_path)
        kept = {name: tensor for name, tensor in tensors.items() if not name.startswith("vae.")}
        save_file(kept, tmp_path / "no-vae.safetensors", SafetensorsFile(MODELS.model_path).metadata)
        before = records(folder / "out" / "latents")
        models = ModelFiles.of(tmp_path / "no-vae.safetensors", MODELS.text_encoder_path)
        options = ProcessingOptions(skip_audio=True)
        with pytest.raises(LtxError, match="video_encoder"):
            process_dataset(folder / "t.json", models, BUCKETS, options, folder / "out")
        assert before and records(folder / "out" / "latents") == before

    def test_a_removed_row_is_not_trained_on_and_check_prunes_it(self, folder):
        data = lambda: PrecomputedDataset(folder / "out", ["latents", "conditions"])  # noqa: E731
        assert len(data()) == 2
        write_rows(folder / "t.json", {"video": "a.mp4", "caption": "other"})
        arguments = ["check", str(folder / "t.json"), "--output-dir", str(folder / "out")]
        result = CliRunner().invoke(command, arguments)
        assert result.exit_code == 1 and "stale conditions/a: another caption" in result.stdout
        assert "orphan latents/silent.safetensors: no table names it" in result.stdout
        self.run(folder)
        assert len(data()) == 1 and data().orphans == 1
        assert len(list((folder / "out" / "latents").iterdir())) == 2
        result = CliRunner().invoke(command, [*arguments, "--prune"])
        assert result.exit_code == 0 and result.stdout.endswith("0 stale, 0 missing, 2 orphans deleted\n")
        assert [path.name for path in (folder / "out" / "latents").iterdir()] == ["a.safetensors"]

    def test_records_that_do_not_say_what_they_were_made_of_are_kept_and_told(self, folder):
        path = folder / "out" / "latents" / "a.safetensors"
        write_record(path, read_record(path))
        report = self.run(folder)
        assert not report.written and "latents: 1 kept that do not say what they were made of" in report.lines()[-4]

    def test_two_tables_share_a_folder(self, folder):
        write_rows(folder / "u.json", {"video": "silent.mp4", "caption": "s"})
        process_dataset(folder / "u.json", MODELS, BUCKETS, ProcessingOptions(skip_audio=True), folder / "out")
        assert not check_dataset(folder / "u.json", folder / "out").lines()


class TestBadInput:
    def run(self, path: Path, buckets: str | None = BUCKETS, **options):
        return process_dataset(path, MODELS, buckets, ProcessingOptions(**options), path.parent / "out")

    @pytest.mark.parametrize(
        ("name", "content", "message"),
        [
            (
                "a.csv",
                "text,video\nx,a.mp4\n",
                "a.csv has no column 'caption'; its columns are text, video: name yours",
            ),
            ("a.csv", "caption,clip\nx,a.mp4\n", "has no column 'video' or 'audio'; its columns are caption, clip"),
            ("a.csv", "", "a.csv is empty, expected a row per example"),
            ("a.json", "", "a.json is empty"),
            ("a.json", "[]", "a.json is empty"),
            ("a.jsonl", "\n\n", "a.jsonl is empty"),
            ("a.json", "{", "a.json: it is no JSON"),
            ("a.json", '{"a": 1}', "holds no list of objects"),
            ("a.jsonl", "[1]\n", "holds no list of objects"),
            ("a.xlsx", "", "is a .xlsx file, expected one of .csv, .json, .jsonl"),
            ("a.csv", "caption,video\na red, round ball,a.mp4\n", "row 1 has 3 cells, the header 2; put quotes"),
            ("a.json", '[{"caption": "x", "video": ""}]', "row 1 names no video and no audio"),
            ("a.json", '[{"caption": "x", "video": "a"}, {"video": "b"}]', "row 2 has no caption"),
            ("a.json", '[{"caption": "x", "video": "a.mp4"}, {"caption": "y", "video": "a.png"}]', "suffix only"),
        ],
    )
    def test_metadata(self, tmp_path, name, content, message):
        (tmp_path / name).write_text(content)
        with pytest.raises(ConfigError) as caught:
            self.run(tmp_path / name)
        assert message in str(caught.value) and "\n" not in str(caught.value)
        assert not (tmp_path / "out").exists()

    def test_two_rows_of_one_clip_are_two_examples(self, tmp_path):
        path = write_rows(
            tmp_path / "a.json", *({"video": "b/a.mp4", "caption": c} for c in ("one", " two\n", "three"))
        )
        rows = read_rows(path)
        assert [str(row.stem) for row in rows] == ["b/a", "b/a+2", "b/a+3"]
        assert [row.caption for row in rows] == ["one", "two", "three"]
        assert {row.target for row in rows} == {tmp_path / "b" / "a.mp4"}

    def test_a_missing_file_and_a_missing_named_column(self, tmp_path):
        with pytest.raises(ConfigError, match=r"cannot read .*none\.csv: No such file"):
            read_rows(tmp_path / "none.csv")
        path = write_rows(tmp_path / "a.json", {"video": "a.mp4", "caption": "x"})
        with pytest.raises(ConfigError, match="has no column 'clip'; its columns are video, caption"):
            read_rows(path, video_column="clip")

    @pytest.mark.parametrize(
        ("buckets", "message"),
        [
            (None, "expected resolution buckets"),
            ("960x540x49", "bucket 960x540x49: height is 540, expected a multiple of 32; nearest valid: 544"),
            ("960x544x50", "frames is 50, expected 8k[+]1; nearest valid: 49"),
            ("960x544", "bucket is '960x544', expected width x height x frames"),
            (";", "resolution buckets are ';'"),
        ],
    )
    def test_buckets(self, tmp_path, buckets, message):
        with pytest.raises(ConfigError, match=message):
            self.run(write_rows(tmp_path / "a.json", {"video": "a.mp4", "caption": "x"}), buckets)

    def test_references_that_leave_no_whole_cells(self, tmp_path):
        path = write_rows(tmp_path / "a.json", {"video": "a.mp4", "reference_video": "b.mp4", "caption": "x"})
        with pytest.raises(ConfigError, match="bucket 96x64x17: width divided by 2 is no multiple of 32"):
            self.run(path, reference_downscale_factor=2)
        with pytest.raises(ConfigError, match="frames - 1 is 16, expected a multiple of 32 for references slowed by 4"):
            self.run(path, "128x64x17", reference_temporal_scale_factor=4)

    def test_a_bucket_that_no_clip_fits_is_noted(self, clips, tmp_path):
        path = write_rows(clips / "bucket.json", {"video": "a.mp4", "caption": "a"})
        options = ProcessingOptions(skip_audio=True)
        report = process_dataset(path, MODELS, "96x64x17;64x96x17", options, tmp_path)
        assert "bucket 64x96x17: no clip fits it" in report.lines()
        assert "audio_latents" not in report.written

    def test_the_command_prints_one_line(self, tmp_path):
        (tmp_path / "a.csv").write_text("text,video\nx,a.mp4\n")
        arguments = ["process", str(tmp_path / "a.csv"), "--model-path", str(MODELS.model_path)]
        result = CliRunner().invoke(command, [*arguments, "--resolution-buckets", BUCKETS])
        assert result.exit_code == 1
        assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1

    def test_the_command_fails_where_nothing_came_of_any_row(self, clips, tmp_path):
        path = write_rows(clips / "bad.json", {"video": "broken.mp4", "caption": "x"})
        arguments = ["videos", str(path), "--model-path", str(MODELS.model_path), "--output-dir", str(tmp_path)]
        result = CliRunner().invoke(command, [*arguments, "--resolution-buckets", BUCKETS])
        assert result.exit_code == 1 and "skipped latents/broken" in result.stdout

    def test_missing_options_of_a_split_pack_are_named(self, tmp_path):
        from safetensors.torch import load_file, save_file

        whole = load_file(MODELS.model_path)
        tensors = {name: tensor for name, tensor in whole.items() if name.startswith("model.diffusion_model.")}
        config = {"transformer": MODELS.model().config["transformer"]}
        save_file(
            tensors, tmp_path / "transformer.safetensors", {"config": json.dumps(config), "model_version": "2.5.0"}
        )
        split = ModelFiles.of(tmp_path / "transformer.safetensors", MODELS.text_encoder_path)
        for network, option in (("video_encoder", "video_vae_path"), ("vocoder", "audio_vae_path")):
            with pytest.raises(ConfigError, match=f"no {network}: {option} is missing"):
                split.build(network, torch.float32, "cpu")
        with pytest.raises(ConfigError, match="text_encoder_path is the folder"):
            split.text_encoder(torch.float32, "cpu")
        with pytest.raises(ConfigError, match="text_encoder_path is missing"):
            ModelFiles.of(MODELS.model_path).text_encoder(torch.float32, "cpu")


class TestAudioOnly:
    def test_sound_is_brought_to_the_longest_duration_it_fills(self, clips, tmp_path):
        for name, seconds in (("one", 1.0), ("two", 2.2), ("tiny", 0.1)):
            write_wav(tmp_path / f"{name}.wav", seconds)
        rows = [{"audio": f"{name}.wav", "caption": name} for name in ("one", "two", "tiny")]
        rows[0]["reference_audio"] = "two.wav"
        write_record(tmp_path / "mask.safetensors", {"mask": torch.tensor([0.0, 1.0])})
        rows[1]["audio_mask"] = "mask.safetensors"
        path = write_rows(tmp_path / "a.json", *rows)
        options = ProcessingOptions(audio_durations=(0.5, 2.0))
        report = process_dataset(path, MODELS, None, options, tmp_path / "out")
        assert [
            read_values(tmp_path / "out" / "audio_latents" / f"{n}.safetensors")["duration"] for n in ("one", "two")
        ] == [0.5, 2.0]
        assert [row for _, row, _ in report.skipped] == ["tiny"]
        assert read_values(tmp_path / "out" / "reference_audio_latents" / "one.safetensors")["duration"] == 0.5
        mask = read_record(tmp_path / "out" / "audio_masks" / "two.safetensors")["mask"]
        steps = read_values(tmp_path / "out" / "audio_latents" / "two.safetensors")["num_time_steps"]
        assert mask.tolist() == [0.0] * math.ceil(steps / 2) + [1.0] * (steps // 2)


def test_an_audio_mask_takes_the_nearest_earlier_value_as_interpolation_counts_it() -> None:
    mask = torch.zeros(84)
    mask[62] = 1
    assert audio_mask(mask, 100).nonzero().flatten().tolist() == [74, 75]  # 75 * 0.84 is just below 63 in float32


def write_wav(path: Path, seconds: float) -> None:
    time = torch.arange(round(seconds * 16000)) / 16000
    write_sound(path, Audio(torch.sin(2 * math.pi * 300 * time).expand(2, -1) * 0.5, 16000))


class TestMedia:
    def test_sound_and_picture_stay_together_at_another_frame_rate(self, tmp_path):
        """A flash and a click at 1 s: after resampling they are still at 1 s."""
        frames = [torch.full((32, 32, 3), 255 if index == 30 else 0, dtype=torch.uint8) for index in range(60)]
        click = torch.zeros(1, 32000)
        click[:, 16000:17600] = torch.sin(torch.arange(1600) * 0.5) * 0.8
        write_video(tmp_path / "a.mp4", frames, 30, Audio(click, 16000))
        for fps in (12, 24, 25, 30, 50):
            seen = [float(frame.float().mean()) for frame in read_frames_at(tmp_path / "a.mp4", fps)]
            flash = seen.index(max(seen))
            assert len(seen) == 2 * fps
            assert abs(flash / fps - 1.0) < 1 / fps
        sound = read_audio(tmp_path / "a.mp4", probe_video(tmp_path / "a.mp4").start, 2.0)
        onset = int((sound.waveform[0, 0].abs() > 0.1).nonzero()[0]) / sound.sampling_rate
        assert abs(onset - 1.0) < 0.02

    def test_stored_frames_come_as_they_are_without_a_rate(self, tmp_path):
        write_clip(tmp_path / "a.mp4", frames=20, fps=29.97)
        assert probe_video(tmp_path / "a.mp4").fps == pytest.approx(29.97, abs=1e-3)
        seen = [float(frame.float().mean()) for frame in read_frames(tmp_path / "a.mp4")]
        assert len(seen) == 20 and seen == sorted(seen)

    def test_a_window_of_sound_is_the_samples_of_that_window(self, tmp_path):
        write_wav(tmp_path / "a.wav", 1.0)
        whole = read_audio(tmp_path / "a.wav").waveform
        part = read_audio(tmp_path / "a.wav", 0.25, 0.5).waveform
        assert whole.shape == (1, 2, 16000) and torch.equal(part, whole[..., 4000:12000])
        assert read_audio(tmp_path / "a.wav", 2.0, 0.5) is None

    def test_pictures_are_turned_upright(self, tmp_path):
        picture = Image.new("RGB", (40, 20), (255, 0, 0))
        exif = picture.getexif()
        exif[0x0112] = 6  # turn right
        picture.save(tmp_path / "a.jpg", exif=exif)
        assert decode_image(tmp_path / "a.jpg").shape == (40, 20, 3)

    def test_a_truncated_video_is_an_error_of_that_video(self, tmp_path):
        write_clip(tmp_path / "a.mp4")
        data = (tmp_path / "a.mp4").read_bytes()
        (tmp_path / "a.mp4").write_bytes(data[: len(data) // 2])
        with pytest.raises(MediaError, match=r"a\.mp4: cannot read video"):
            list(read_frames(tmp_path / "a.mp4"))


class TestPixels:
    def test_a_mask_video_is_cut_like_its_clip_and_grouped_like_latent_frames(self, clips, tmp_path):
        """White from frame 1 on, on the right half of a wide clip: latent frame 0 stays black, 1 and 2 get it."""
        wide = [torch.zeros(64, 192, 3, dtype=torch.uint8) for _ in range(17)]
        for frame in wide[1:]:
            frame[:, 96:] = 255
        write_video(tmp_path / "mask.mp4", wide, 24)
        write_clip(tmp_path / "clip.mp4", size=(64, 192))
        path = write_rows(tmp_path / "a.json", {"video": "clip.mp4", "video_mask": "mask.mp4", "caption": "x"})
        options = ProcessingOptions(skip_audio=True)
        process_dataset(path, MODELS, "64x64x17", options, tmp_path / "out")
        mask = read_record(tmp_path / "out" / "video_masks" / "clip.safetensors")["mask"]
        assert mask.tolist() == [[[0.0, 0.0]] * 2] + [[[0.0, 1.0]] * 2] * 2

    def test_a_short_mask_counts_as_black_where_it_ends(self):
        mask = video_mask(torch.ones(4, 1, 32, 32), (3, 1, 1), FACTORS)
        assert mask.flatten().tolist() == [1.0, 0.0, 0.0]

    def test_crops_may_lie_anywhere(self):
        frames = torch.arange(8.0).expand(1, 1, 4, 8)
        left, right = (resize_and_crop(frames, 4, 4, crop=(0.0, x)) for x in (0.0, 1.0))
        assert left[0, 0, 0].tolist() == [0, 1, 2, 3] and right[0, 0, 0].tolist() == [4, 5, 6, 7]

    def test_tiles_of_a_local_encoder_join_to_the_whole(self):
        def encode(video: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.avg_pool3d(video, (1, 32, 32))

        video = torch.rand(2, 3, 1, 160, 352)
        torch.testing.assert_close(encode_in_tiles(encode, video, FACTORS, 128, 64), encode(video))
        with pytest.raises(ConfigError, match="tiles are 100 with overlap 32"):
            encode_in_tiles(encode, video, FACTORS, 100, 32)

    def test_a_clip_goes_to_the_longest_bucket_of_its_aspect(self):
        buckets = parse_buckets("64x32x9;64x32x17;32x64x17", FACTORS)
        assert [select_bucket(f, 36, 64, buckets) for f in (5, 9, 16, 17, 99)] == [None, 0, 0, 1, 1]


class TestCaptions:
    def test_captions_are_saved_kept_and_added_to(self, clips, tmp_path):
        asked: list[str] = []

        def captioner(path: Path) -> str:
            asked.append(path.name)
            if path.name == "b.mp4":
                raise MediaError("b.mp4: it is broken")
            return f"a clip\tcalled “{path.stem}”, and\na comma"

        media = [clips / "a.mp4", clips / "sub" / "b.mp4"]
        for suffix in ("json", "jsonl", "csv", "txt"):
            output = clips / f"captions.{suffix}"
            failed = caption_media(media, output, captioner)
            assert failed == [(clips / "sub" / "b.mp4", "b.mp4: it is broken")]
            assert asked == ["a.mp4", "b.mp4"]
            asked.clear()
            caption_media([*media, clips / "still.png"], output, captioner)
            assert asked == ["b.mp4", "still.png"]
            asked.clear()
            caption_media(media[:1], output, captioner, override=True)
            assert asked == ["a.mp4"]
            asked.clear()
        rows = read_rows(clips / "captions.json")
        assert [str(row.stem) for row in rows] == ["a", "still"]
        with (clips / "captions.csv").open(newline="") as file:
            assert next(csv.DictReader(file)) == {"caption": captioner(clips / "a.mp4"), "media_path": "a.mp4"}
        assert (clips / "captions.txt").read_text().splitlines()[0] == "a.mp4\ta clip called “a”, and a comma"

    def test_an_interrupted_run_keeps_its_captions(self, clips, tmp_path):
        def captioner(path: Path) -> str:
            if path.name == "silent.mp4":
                raise KeyboardInterrupt
            return "x"

        output = tmp_path / "captions.json"
        with pytest.raises(KeyboardInterrupt):
            caption_media([clips / "a.mp4", clips / "silent.mp4"], output, captioner)
        assert len(json.loads(output.read_text())) == 1

    def test_media_are_found_below_a_folder_but_not_in_hidden_ones(self, tmp_path):
        for name in ("b/x.mp4", "a.png", ".precomputed/decoded/y.mp4", "notes.txt"):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).touch()
        assert [str(path.relative_to(tmp_path)) for path in find_media(tmp_path)] == ["a.png", "b/x.mp4"]
        with pytest.raises(ConfigError, match="holds no video"):
            find_media(tmp_path / "none")

    def test_without_a_model_there_is_advice(self, tmp_path):
        for folder in (tmp_path, tmp_path / "none"):
            with pytest.raises(ConfigError, match=r"no captioning model at .*hf download Qwen") as caught:
                transformers_captioner(str(folder))
            assert "\n" not in str(caught.value)

    def test_a_model_on_this_machine_captions_videos_and_pictures(self, clips, tmp_path):
        shutil.copytree(TINY_CHECKPOINT / "gemma-3-tiny", tmp_path / "model")
        (tmp_path / "model" / "chat_template.jinja").write_text(
            "{{ bos_token }}{% for part in messages[0].content %}"
            "{% if part.type == 'image' %}<start_of_image>{% else %}{{ part.text }}{% endif %}{% endfor %}"
        )
        captioner = transformers_captioner(str(tmp_path / "model"), max_new_tokens=4)
        answers = [captioner(clips / name) for name in ("a.mp4", "still.png")]
        assert all(isinstance(answer, str) for answer in answers)

    def test_answers_cut_off_inside_an_escape(self):
        assert parse_answer('{"combined_caption_english": "a \\u00e9 b\\u00') == "a é b"
        assert parse_answer('{"combined_caption_english": "a\\') == "a"

    def test_stems_of_files_outside_the_folder(self, tmp_path):
        assert output_stem("x/../clip.v2.mp4", tmp_path) == Path("clip.v2")
        assert output_stem("../other/clip.mp4", tmp_path) == (tmp_path.parent / "other" / "clip").relative_to("/")


class TestCommands:
    def test_scenes_are_cut_with_their_sound(self, tmp_path):
        pytest.importorskip("scenedetect")
        colours = [(10, 10, 10), (250, 250, 250), (10, 10, 250)]
        frames = [torch.tensor(colour, dtype=torch.uint8).expand(64, 64, 3) for colour in colours for _ in range(24)]
        tone = torch.sin(torch.arange(48000) * 0.2)[None] * 0.5
        write_video(tmp_path / "long.mp4", frames, 24, Audio(tone, 16000))
        arguments = ["split-scenes", str(tmp_path / "long.mp4"), str(tmp_path / "scenes"), "--save-images", "1"]
        result = CliRunner().invoke(command, arguments)
        assert result.exit_code == 0, result.output
        paths = sorted((tmp_path / "scenes").glob("*.mp4"))
        assert [path.name for path in paths] == [f"long-scene-00{n}.mp4" for n in (1, 2, 3)]
        for index, path in enumerate(paths):
            pictures = torch.stack(list(read_frames(path))).float().mean(dim=(0, 1, 2))
            assert (pictures - torch.tensor(colours[index])).abs().max() < 12
            assert probe_video(path).frames == 24
            assert read_audio(path).duration == pytest.approx(1.0, abs=0.1)
        assert len(list((tmp_path / "scenes").glob("*.jpg"))) == 3

    def test_process_and_decode_from_the_command_line(self, clips, tmp_path):
        path = write_rows(clips / "cli.json", {"clip": "a.mp4", "text": "The video shows a."})
        models = ["--model-path", str(MODELS.model_path), "--text-encoder-path", str(MODELS.text_encoder_path)]
        columns = ["--video-column", "clip", "--caption-column", "text"]
        options = ["--resolution-buckets", "96x64x9", "--output-dir", str(tmp_path / "out"), "--device", "cpu"]
        options += ["--fps", "12", "--keyframe", "0", "--keyframe", "-1"]
        result = CliRunner().invoke(command, ["process", str(path), *models, *columns, *options])
        assert result.exit_code == 0, result.output
        assert read_record(tmp_path / "out" / "keyframe_latents" / "a.safetensors")["frames"].tolist() == [0, 8]
        assert read_values(tmp_path / "out" / "latents" / "a.safetensors")["fps"] == 12.0
        assert read_values(tmp_path / "out" / "audio_latents" / "a.safetensors")["duration"] == pytest.approx(0.75)
        decoded = ["decode", str(tmp_path / "out"), str(tmp_path / "videos"), *models[:2], "--with-audio"]
        result = CliRunner().invoke(command, [*decoded, "--device", "cpu"])
        assert result.exit_code == 0, result.output
        info = probe_video(tmp_path / "videos" / "a.mp4")
        assert (info.width, info.height, info.frames, info.fps, info.has_audio) == (96, 64, 9, 12.0, True)
        decoded[1:3] = str(tmp_path / "out" / "keyframe_latents"), str(tmp_path / "keyframes")
        result = CliRunner().invoke(command, [*decoded[:-1], "--device", "cpu"])
        assert result.exit_code == 0, result.output
        assert probe_video(tmp_path / "keyframes" / "a.mp4").frames == 2
