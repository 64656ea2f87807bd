"""Precomputed data sets: records on disk, discovery, the order of batches, reading ahead."""

from __future__ import annotations

import os
import threading
import time
from itertools import islice
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ltx_core.errors import CheckpointError, ConfigError
from ltx_trainer.background import in_background
from ltx_trainer.datasets import EMPTY_CAPTION, BatchOrder, DataMix, PrecomputedDataset, collate, read_batches
from ltx_trainer.precomputed import caption_record, read_record, read_values, signature, write_record

SOURCES = {"conditions": "conditions", "latents": "video_latents", "audio_latents": "audio_latents"}


def video_record(frames: int = 2, fps: float = 24.0, value: float = 0.0) -> dict:
    latents = torch.full((128, frames, 2, 3), value, dtype=torch.bfloat16)
    return {"latents": latents, "num_frames": frames, "height": 2, "width": 3, "fps": fps}


def audio_record(steps: int = 5, **extra: int) -> dict:
    return {"latents": torch.randn(8, steps, 16), "num_time_steps": steps, "frequency_bins": 16, **extra}


def caption(tokens: int = 3, length: int = 8) -> dict:
    mask = torch.zeros(length, dtype=torch.int64)
    mask[length - tokens :] = 1
    embeds = torch.randn(length, 4, dtype=torch.bfloat16) * mask[:, None]
    return {"video_prompt_embeds": embeds, "prompt_attention_mask": mask}


def write_clip(root: Path, name: str, index: int = 0, **video: float) -> None:
    write_record(root / "latents" / f"{name}.safetensors", video_record(**video, value=float(index)))
    write_record(root / "audio_latents" / f"{name}.safetensors", audio_record(present=1))
    text = caption()
    record = caption_record({"video_prompt_embeds": text["video_prompt_embeds"]}, text["prompt_attention_mask"])
    write_record(root / "conditions" / f"{name}.safetensors", record)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for index in range(7):
        write_clip(tmp_path, f"clips/{index}", index, frames=2 if index < 5 else 3)
    return tmp_path


class TestRecords:
    def test_numbers_keep_their_kind_and_tensors_their_bits(self, tmp_path):
        record = video_record(fps=23.976)
        write_record(tmp_path / "a.safetensors", record)
        again = read_record(tmp_path / "a.safetensors")
        assert again.keys() == record.keys()
        assert type(again["num_frames"]) is int and type(again["fps"]) is float and again["fps"] == 23.976
        assert torch.equal(again["latents"], record["latents"])
        assert read_values(tmp_path / "a.safetensors") == {key: record[key] for key in record if key != "latents"}

    def test_only_valid_caption_tokens_are_stored_and_reading_pads_them(self, tmp_path):
        whole = caption(tokens=3, length=1024)
        stored = caption_record({"video_prompt_embeds": whole["video_prompt_embeds"]}, whole["prompt_attention_mask"])
        write_record(tmp_path / "a.safetensors", stored)
        assert (tmp_path / "a.safetensors").stat().st_size < 1000
        again = read_record(tmp_path / "a.safetensors")
        assert again.keys() == whole.keys()
        assert all(torch.equal(again[name], whole[name]) for name in whole)

    def test_a_pickle_and_a_safetensors_record_have_one_signature(self, tmp_path):
        for record, other in ((video_record(), video_record(frames=3)), (caption(), caption(length=16))):
            torch.save(record, tmp_path / "a.pt")
            stored = record
            if "prompt_attention_mask" in record:
                stored = caption_record(
                    {"video_prompt_embeds": record["video_prompt_embeds"]}, list(record.values())[1]
                )
            write_record(tmp_path / "a.safetensors", stored)
            write_record(tmp_path / "b.safetensors", other)
            assert signature(tmp_path / "a.pt") == signature(tmp_path / "a.safetensors")
            assert signature(tmp_path / "b.safetensors") != signature(tmp_path / "a.safetensors")

    def test_a_pickle_that_runs_code_is_refused_unrun(self, tmp_path):
        class Evil:
            def __reduce__(self):
                return os.mkdir, (str(tmp_path / "owned"),)

        torch.save({"latents": Evil()}, tmp_path / "a.pt")
        with pytest.raises(CheckpointError, match=r"a\.pt is no precomputed file") as caught:
            read_record(tmp_path / "a.pt")
        assert "\n" not in str(caught.value) and not (tmp_path / "owned").exists()

    @pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
    @pytest.mark.parametrize("content", [b"", b"junk" * 100])
    def test_damaged_files_are_named(self, tmp_path, suffix, content):
        path = tmp_path / f"a{suffix}"
        path.write_bytes(content)
        for read in (read_record, read_values, signature):
            with pytest.raises(CheckpointError, match=f"a{suffix} is no precomputed file"):
                read(path)

    def test_a_full_disk_leaves_no_half_file(self, tmp_path, monkeypatch):
        def full(*args, **kwargs):
            Path(args[1]).write_bytes(b"half")
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("safetensors.torch.save_file", full)
        with pytest.raises(CheckpointError, match=r"cannot write .*a\.safetensors: .*No space left"):
            write_record(tmp_path / "a.safetensors", video_record())
        assert list(tmp_path.iterdir()) == []


class TestDiscovery:
    def test_examples_missing_somewhere_are_counted(self, root):
        (root / "audio_latents" / "clips" / "3.safetensors").unlink()
        dataset = PrecomputedDataset(root, SOURCES)
        assert (len(dataset), dataset.skipped) == (6, 1)
        assert dataset[0]["idx"] == 0 and dataset[0]["audio_latents"]["present"] == 1

    def test_safetensors_and_pickles_mix_and_safetensors_win(self, root):
        torch.save(video_record(value=99.0), root / "latents" / "clips" / "0.pt")
        torch.save(video_record(value=7.0), root / "latents" / "clips" / "7.pt")
        for name, record in (("audio_latents", audio_record()), ("conditions", caption())):
            torch.save(record, root / name / "clips" / "7.pt")
        dataset = PrecomputedDataset(root, SOURCES)
        assert [float(dataset[i]["video_latents"]["latents"].max()) for i in range(len(dataset))] == list(range(8))

    def test_errors_name_what_is_missing(self, root):
        with pytest.raises(ConfigError, match="holds no masks/"):
            PrecomputedDataset(root, ["latents", "masks"])
        (root / "empty").mkdir()
        with pytest.raises(ConfigError, match="empty/ is empty"):
            PrecomputedDataset(root, ["empty"])

    def test_the_empty_caption_lies_beside_the_examples(self, root):
        dataset = PrecomputedDataset(root, SOURCES)
        with pytest.raises(ConfigError, match="empty_caption"):
            dataset.empty_caption()
        write_record(
            root / EMPTY_CAPTION, caption_record({"prompt_embeds": torch.ones(4, 2)}, torch.tensor([0, 0, 0, 1]))
        )
        assert dataset.empty_caption()["prompt_embeds"].tolist() == [[0, 0]] * 3 + [[1, 1]]

    def test_held_out_examples_do_not_depend_on_the_others(self, root):
        dataset = DataMix([PrecomputedDataset(root, SOURCES)])

        def names(mix, indices):
            return {mix.members[0].clip(index) for index in indices}

        trained, held = dataset.held_out(2)
        assert sorted(trained + held) == list(range(7)) and len(held) == 2
        share = names(dataset, dataset.held_out(share=0.5)[1])
        write_clip(root, "zz")
        larger = DataMix([PrecomputedDataset(root, SOURCES)])
        assert names(dataset, held) < names(larger, larger.held_out(3)[1])
        assert share == names(larger, larger.held_out(share=0.5)[1]) - {"zz"}
        with pytest.raises(ConfigError, match="8 examples would be held out, expected fewer than the 8"):
            larger.held_out(8)

    def test_parts_of_a_clip_are_held_out_together(self, tmp_path):
        for index in range(12):
            write_clip(tmp_path, f"film@{index}")
            write_clip(tmp_path, f"other{index}")
        mix = DataMix([PrecomputedDataset(tmp_path, SOURCES)])
        sides = [{mix.members[0].clip(index) for index in side} for side in mix.held_out(share=0.4)]
        assert not sides[0] & sides[1] and sides[1]


class TestMix:
    def test_sets_are_one_after_the_other_and_say_so(self, root, tmp_path):
        write_clip(tmp_path / "second", "only")
        mix = DataMix([PrecomputedDataset(root, SOURCES), PrecomputedDataset(tmp_path / "second", SOURCES)])
        assert len(mix) == 8 and mix[7]["idx"] == 7 and mix.signature(7) == mix.members[1].signature(0)

    @pytest.mark.parametrize(
        ("repeats", "weights", "counts"),
        [((1, 1), (None, None), (7, 1)), ((1, 3), (None, None), (7, 3)), ((1, 1), (1.0, 1.0), (7, 7))],
    )
    def test_repeats_and_weights_say_how_often_an_epoch_meets_a_set(self, root, tmp_path, repeats, weights, counts):
        write_clip(tmp_path / "second", "only")
        mix = DataMix([PrecomputedDataset(root, SOURCES), PrecomputedDataset(tmp_path / "second", SOURCES)])
        epoch = mix.epoch(range(8), repeats, weights)
        assert (sum(index < 7 for index in epoch), epoch.count(7)) == counts
        assert set(epoch) == set(range(8))


class TestCollation:
    def test_kinds_and_presence(self):
        batch = collate([{"a": audio_record(), "idx": 0}, {"a": audio_record(present=0), "idx": 1}])
        assert batch["a"]["latents"].shape == (2, 8, 5, 16)
        assert batch["a"]["present"].tolist() == [1, 0] and batch["a"]["present"].dtype == torch.int64
        assert collate([{"v": video_record()}])["v"]["fps"].dtype == torch.float64

    def test_what_does_not_fit_is_named(self):
        with pytest.raises(ConfigError, match="differ in latents"):
            collate([video_record(frames=2), video_record(frames=3)])
        with pytest.raises(ConfigError, match="some examples of a batch have fps"):
            collate([video_record(), {key: value for key, value in video_record().items() if key != "fps"}])


class TestOrder:
    @settings(max_examples=50, deadline=None)
    @given(
        sizes=st.lists(st.integers(1, 9), min_size=1, max_size=4),
        batch_size=st.integers(1, 5),
        seed=st.integers(0, 99),
        epoch=st.integers(0, 3),
    )
    def test_an_epoch_holds_every_example_and_no_mixed_batch(self, sizes, batch_size, seed, epoch):
        ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
        buckets = tuple(tuple(range(end - size, end)) for size, end in zip(sizes, ends, strict=True))
        order = BatchOrder(buckets, batch_size, seed)
        batches = order.epoch(epoch)
        assert len(batches) == order.batches_per_epoch
        assert {index for batch in batches for index in batch} == set(range(sum(sizes)))
        for batch in batches:
            assert len(batch) == batch_size
            assert any(set(batch) <= set(bucket) for bucket in buckets)
        assert batches == BatchOrder(buckets, batch_size, seed).epoch(epoch)
        assert order.at(epoch * order.batches_per_epoch) == batches[0]

    def test_epochs_and_seeds_differ(self):
        order = BatchOrder((tuple(range(50)),), 1, 0)
        assert order.epoch(0) != order.epoch(1)
        assert order.epoch(0) != BatchOrder(order.buckets, 1, 1).epoch(0)

    def test_buckets_follow_shape_length_of_sound_and_frame_rate(self, root):
        write_clip(root, "fast", fps=60.0)
        order = BatchOrder.of(PrecomputedDataset(root, SOURCES), 2, 0)
        assert order.buckets == ((0, 1, 2, 3, 4), (5, 6), (7,))
        assert BatchOrder.of(PrecomputedDataset(root, SOURCES), 1, 0).buckets == (tuple(range(8)),)
        assert BatchOrder.of(PrecomputedDataset(root, SOURCES), 2, 0, [0, 6]).buckets == ((0,), (6,))

    def test_batches_are_a_function_of_their_position(self, root):
        dataset = PrecomputedDataset(root, SOURCES)
        order = BatchOrder.of(dataset, 2, 3)
        indices = [batch["idx"].tolist() for batch in islice(read_batches(dataset, order), 12)]
        resumed = [batch["idx"].tolist() for batch in islice(read_batches(dataset, order, first=5, workers=0), 7)]
        assert indices[5:] == resumed

    def test_processes_share_the_batch_of_one(self, root):
        dataset = PrecomputedDataset(root, SOURCES)
        order = BatchOrder.of(dataset, 4, 3)
        whole = [batch["idx"].tolist() for batch in islice(read_batches(dataset, order), 6)]
        parts = [
            [batch["idx"].tolist() for batch in islice(read_batches(dataset, order, 0, rank, 2), 6)] for rank in (0, 1)
        ]
        assert whole == [[*first, *second] for first, second in zip(*parts, strict=True)]


class TestBackground:
    def test_results_come_in_order_and_no_further_ahead_than_allowed(self):
        started: list[int] = []

        def work(item: int) -> int:
            started.append(item)
            time.sleep(0.002 * (item % 3))
            return item * item

        results = in_background(work, range(100), workers=3, ahead=5)
        assert [next(results) for _ in range(4)] == [0, 1, 4, 9]
        assert len(started) <= 4 + 5
        results.close()

    def test_the_next_item_is_worked_on_while_one_is_used(self):
        second = threading.Event()

        def work(item: int) -> int:
            if item == 1:
                second.set()
            return item

        results = in_background(work, range(3), workers=1)
        next(results)
        assert second.wait(timeout=10)
        results.close()

    @pytest.mark.parametrize("workers", [0, 2])
    def test_an_error_is_raised_in_its_place(self, workers):
        results = in_background(lambda x: 1 // x, [1, 1, 0, 1], workers)
        assert [next(results), next(results)] == [1, 1]
        with pytest.raises(ZeroDivisionError):
            next(results)

    def test_a_damaged_file_is_named_when_its_batch_is_read(self, root):
        (root / "latents" / "clips" / "2.safetensors").write_bytes(b"junk")
        dataset = PrecomputedDataset(root, SOURCES)
        order = BatchOrder((tuple(range(7)),), 1, 0)
        with pytest.raises(CheckpointError, match=r"clips/2\.safetensors"):
            list(islice(read_batches(dataset, order), 7))
