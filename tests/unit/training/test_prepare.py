import json
import logging
import os
from dataclasses import replace
from pathlib import Path

import numpy
import pytest
import torch

from cosmos_nemo.catalog import ModelCard, find_card
from cosmos_nemo.checkpoint.locate import locate, text_encoder_of, tokenizer_of
from cosmos_nemo.checkpoint.reader import CheckpointError
from cosmos_nemo.request import RequestError
from cosmos_nemo.stages.text_encoder import TextEncoder
from cosmos_nemo.stages.tokenizer import Tokenizer
from cosmos_nemo.stages.wan_tokenizer import WanTokenizerStage
from cosmos_nemo.tools.standin import write_standin
from cosmos_nemo.training import prepare as module
from cosmos_nemo.training.data import DataError
from cosmos_nemo.training.prepare import Options, Preparation, check_output, fitted, plan_preparation, prepare
from cosmos_nemo.training.prepared_folder import PreparedFolder

NANO, CPU = find_card("Cosmos-Nano-Text2World"), torch.device("cpu")
INTERPOLATOR = find_card("Cosmos-Nano-WorldInterpolator")
PREDICT2 = find_card("Cosmos-Nano-Predict2-Video2World")


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """tokenizer_dir and text_encoder_dir of a stand-in."""
    return encoders_of(NANO, tmp_path_factory.mktemp("standin") / "nano")


def encoders_of(card: ModelCard, folder: Path) -> dict[str, Path]:
    write_standin([card], folder, seed=0, layout="folder")
    tokenizer, text = (locate(part(card), assets_dir=folder) for part in (tokenizer_of, text_encoder_of))
    assert tokenizer is not None and text is not None
    return {"tokenizer_dir": tokenizer, "text_encoder_dir": text}


@pytest.fixture(scope="module")
def encoders2(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """As encoders, of a stand-in of Predict2."""
    return encoders_of(PREDICT2, tmp_path_factory.mktemp("standin") / "nano2")


def clip(num_frames: int, *, height: int = 32, width: int = 48) -> numpy.ndarray:
    """Frames of smooth noise of their own, so that each window has a latent of its own."""
    coarse = numpy.random.RandomState(num_frames).randint(0, 255, (num_frames, height // 8, width // 8, 3))
    return coarse.repeat(8, axis=1).repeat(8, axis=2).astype(numpy.uint8)


@pytest.fixture
def options(tmp_path: Path) -> Options:
    """Two videos, 12 and 9 frames long, the first with a caption of its own; three windows of 9 asked."""
    videos = tmp_path / "videos"
    videos.mkdir()
    numpy.save(videos / "a.npy", clip(12))
    numpy.save(videos / "b.npy", clip(9))
    (videos / "a.txt").write_text("a ship\n")
    return Options(
        dataset_dir=videos,
        output_dir=tmp_path / "out",
        height=32,
        width=48,
        num_frames=9,
        prompt="A video of sks.",
        num_chunks=3,
    )


def plan(options: Options, card: ModelCard = NANO) -> Preparation:
    return plan_preparation(options, card, device=CPU)


def test_windows_are_different_and_drawn_from_the_seed_and_the_name(options: Options) -> None:
    numpy.save(options.dataset_dir / "c.npy", clip(60))
    numpy.save(options.dataset_dir / "d.npy", clip(60))
    starts = {s.path.name: s.starts for s in plan(options).sources}
    assert [len(starts[name]) for name in ("a.npy", "b.npy", "c.npy")] == [3, 1, 3]
    assert all(0 <= s <= 51 for s in starts["c.npy"]) and sorted(set(starts["c.npy"])) == [*starts["c.npy"]]
    assert starts["c.npy"] != starts["d.npy"]
    other = {s.path.name: s.starts for s in plan(replace(options, seed=1)).sources}
    assert other["c.npy"] != starts["c.npy"]
    (options.dataset_dir / "a.npy").unlink()
    assert {s.path.name: s.starts for s in plan(options).sources}["c.npy"] == starts["c.npy"]


def test_every_window_of_a_video_can_be_had(options: Options) -> None:
    assert plan(replace(options, num_chunks=100)).sources[0].starts == (0, 1, 2, 3)


def test_a_caption_beside_the_video_goes_before_the_prompt(options: Options) -> None:
    assert [s.caption for s in plan(options).sources] == ["a ship", "A video of sks."]


@pytest.mark.parametrize("prompt", [None, "", "  "])
def test_a_video_without_caption_needs_a_prompt(options: Options, prompt: str | None) -> None:
    with pytest.raises(DataError, match=r"b\.npy has no caption: write one to b\.txt .* --prompt"):
        plan(replace(options, prompt=prompt))


def test_a_prompt_that_no_video_takes_is_reported(options: Options, caplog: pytest.LogCaptureFixture) -> None:
    plan(options)
    assert caplog.text == ""
    (options.dataset_dir / "b.txt").write_text("b")
    plan(options)
    assert "--prompt is not used" in caplog.text


@pytest.mark.parametrize("content", [b"", b" \n", b"\xff\xfe"])
def test_a_bad_caption_file_is_named(options: Options, content: bytes) -> None:
    (options.dataset_dir / "a.txt").write_bytes(content)
    with pytest.raises(DataError, match=r"a\.txt is"):
        plan(options)


def test_a_short_video_is_left_out_by_name_and_only_short_ones_are_an_error(
    options: Options, caplog: pytest.LogCaptureFixture
) -> None:
    numpy.save(options.dataset_dir / "short.npy", clip(8))
    with caplog.at_level(logging.WARNING):
        assert len(plan(options).sources) == 2
    assert "short.npy is left out: it has 8 frames, but a window 9" in caplog.text
    with pytest.raises(DataError, match=r"None of the 3 videos .* 17 frames; the longest has 12"):
        plan(replace(options, num_frames=17))


def test_videos_of_two_frame_rates_are_refused(options: Options) -> None:
    (options.dataset_dir / "b.json").write_text('{"fps": 30}')
    with pytest.raises(DataError, match=r"b\.npy has 30 fps, but a\.npy 24"):
        plan(options)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_chunks": 0}, "--num_chunks 0"),
        ({"num_frames": 10}, r"--num_frames 10 does not fit .* 8k\+1 frames from 9 to 121"),
        ({"num_frames": 129}, "--num_frames 129"),
        ({"height": 40}, "--height 40"),
        ({"width": 0}, "--width 0"),
        ({"seed": -1}, "--seed -1"),
    ],
)
def test_options_that_cannot_be_are_refused(options: Options, changes: dict, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        plan(replace(options, **changes))


def test_a_folder_without_videos_is_refused(options: Options, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name, message in (("empty", "holds no videos"), ("missing", "is no folder")):
        with pytest.raises(DataError, match=message):
            plan(replace(options, dataset_dir=tmp_path / name))


def test_the_samples_hold_the_encoded_windows_and_captions(
    options: Options, encoders: dict[str, Path]
) -> None:
    preparation = plan(options)
    seen: list[tuple[int, int]] = []
    assert prepare(preparation, **encoders, on_sample=lambda *done: seen.append(done)) == 4
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    data = PreparedFolder(options.output_dir)
    data.check(NANO)
    assert (len(data), data.latent_shape) == (4, (16, 2, 4, 6))
    tokenizer = Tokenizer(shape=NANO.tokenizer, folder=encoders["tokenizer_dir"], device=CPU)
    encoder = TextEncoder(
        folder=encoders["text_encoder_dir"], text_length=128, text_dim=64, device=CPU, dtype=torch.float32
    )
    with tokenizer, encoder:
        for sample in preparation.samples:
            batch = data.batch([sample.number])
            frames = numpy.load(sample.source.path)[sample.start : sample.start + 9]
            video = torch.from_numpy(frames).permute(3, 0, 1, 2)[None].float() / 127.5 - 1
            torch.testing.assert_close(batch.latent_BCTHW, tokenizer.encode(video), rtol=0, atol=1e-5)
            torch.testing.assert_close(batch.text_BLD, encoder([sample.source.caption]), rtol=0, atol=1e-6)
    info = json.loads((options.output_dir / "3.info.json").read_text())
    assert info == {
        "height": 32,
        "width": 48,
        "fps": 24.0,
        "num_frames": 9,
        "video_path": str(options.dataset_dir / "b.npy"),
        "start_frame": 0,
        "prompt": "A video of sks.",
    }
    mask = torch.load(options.output_dir / "3.t5_text_mask.pth", weights_only=True)
    text = torch.load(options.output_dir / "3.t5_text_embeddings.pth", weights_only=True)
    assert mask.shape == (128,) and torch.equal(mask.bool(), text.any(dim=1)) and 2 < mask.sum() < 64


def test_each_different_caption_is_encoded_once(
    options: Options, encoders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    encode = TextEncoder.__call__

    def recorded(self: TextEncoder, prompts: list[str]) -> torch.Tensor:
        asked.extend(prompts)
        return encode(self, prompts)

    monkeypatch.setattr(TextEncoder, "__call__", recorded)
    prepare(plan(options), **encoders)
    assert asked == ["a ship", "A video of sks."]


def test_an_interrupted_preparation_continues_and_ends_as_an_uninterrupted_one(
    options: Options, encoders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = replace(options, output_dir=tmp_path / "whole")
    prepare(plan(whole), **encoders)
    save, saved = torch.save, []

    def fails_at_fifth(tensor: torch.Tensor, path: Path) -> None:
        saved.append(path)
        if len(saved) == 5:  # the text of the second sample
            path.write_bytes(b"half")
            raise KeyboardInterrupt
        save(tensor, path)

    with monkeypatch.context() as patched:
        patched.setattr(torch, "save", fails_at_fifth)
        with pytest.raises(KeyboardInterrupt):
            prepare(plan(options), **encoders)
    assert not [name for name in os.listdir(options.output_dir) if "partial" in name]
    with pytest.raises(DataError, match=r"1\.t5_text_embeddings\.pth is missing"):
        PreparedFolder(options.output_dir)
    assert [sample.number for sample in plan(options).missing] == [1, 2, 3]
    assert prepare(plan(options), **encoders) == 3
    assert sorted(os.listdir(options.output_dir)) == sorted(os.listdir(whole.output_dir))
    one, other = PreparedFolder(options.output_dir), PreparedFolder(whole.output_dir)
    assert torch.equal(one.batch(range(4)).latent_BCTHW, other.batch(range(4)).latent_BCTHW)


def test_complete_samples_are_left_alone_and_no_model_is_built_for_them(
    options: Options, encoders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(plan(options), **encoders)
    before = {path.name: path.stat().st_mtime_ns for path in options.output_dir.iterdir()}
    monkeypatch.setattr(Tokenizer, "build", None)
    monkeypatch.setattr(TextEncoder, "build", None)
    assert prepare(plan(options), **encoders) == 0
    assert {path.name: path.stat().st_mtime_ns for path in options.output_dir.iterdir()} == before


def test_samples_of_other_settings_are_not_mixed(
    options: Options, encoders: dict[str, Path], tmp_path: Path
) -> None:
    prepare(plan(options), **encoders)
    for changes, message in (
        ({"height": 48}, "height 32, not 48"),
        ({"num_chunks": 2}, "num_chunks 3, not 2"),
        ({"seed": 4}, "seed 0, not 4"),
        ({"keep_aspect": True}, "keep_aspect False, not True"),
        ({"prompt": "other"}, r"b\.npy is new, is gone or has changed, or its caption"),
    ):
        with pytest.raises(DataError, match=message):
            prepare(plan(replace(options, **changes)), **encoders)
    write_standin([NANO], tmp_path / "other", seed=1, layout="folder")
    tokenizer = locate(tokenizer_of(NANO), assets_dir=tmp_path / "other")
    with pytest.raises(DataError, match="other settings: tokenizer"):
        prepare(plan(options), **{**encoders, "tokenizer_dir": tokenizer})
    numpy.save(options.dataset_dir / "c.npy", clip(9))
    with pytest.raises(DataError, match=r"c\.npy is new"):
        prepare(plan(options), **encoders)


def test_a_folder_of_unknown_samples_or_settings_is_refused(options: Options) -> None:
    options.output_dir.mkdir()
    check_output(options.output_dir, plan(options).settings())
    (options.output_dir / "0.info.json").write_text("{}")
    with pytest.raises(DataError, match=r"holds 0\.info\.json, but no prepared\.json"):
        check_output(options.output_dir, plan(options).settings())
    for content in ("{", "[]", "{}"):
        (options.output_dir / "prepared.json").write_text(content)
        with pytest.raises(DataError, match=r"prepared\.json is damaged"):
            check_output(options.output_dir, plan(options).settings())
    with pytest.raises(DataError, match="is a file"):
        check_output(options.output_dir / "0.info.json", {})


def test_a_disk_without_room_is_told_before_anything_is_written(
    options: Options, encoders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Preparation, "sample_bytes", 2**60)
    with pytest.raises(DataError, match="GiB more"):
        prepare(plan(options), **encoders)
    assert not options.output_dir.exists()


def test_the_announced_size_is_about_what_is_written(options: Options, encoders: dict[str, Path]) -> None:
    preparation = plan(options)
    prepare(preparation, **encoders)
    written = sum(path.stat().st_size for path in options.output_dir.glob("0.*"))
    assert preparation.sample_bytes == pytest.approx(written, rel=0.2)


def test_a_video_that_ends_early_is_named(
    options: Options, encoders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    preparation = plan(options)
    monkeypatch.setattr(module, "read_frames", lambda path: (frame for frame in clip(8)))
    with pytest.raises(DataError, match=r"a\.npy ended before frame 9, though 12 were counted"):
        prepare(preparation, **encoders)


def test_a_tokenizer_that_makes_nan_is_reported(
    options: Options, encoders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Tokenizer, "encode", lambda self, video: torch.full((1, 16, 2, 4, 6), torch.nan))
    with pytest.raises(DataError, match=r"a\.npy, frames from 0: .* NaN"):
        prepare(plan(options), **encoders)


def test_a_frame_of_the_right_size_is_not_touched() -> None:
    frame = clip(1)[0]
    assert numpy.array_equal(fitted(frame, height=32, width=48, keep_aspect=True, device=CPU).numpy(), frame)


@pytest.mark.parametrize(("height", "width"), [(16, 16), (64, 16), (64, 128)])
def test_a_frame_is_stretched_or_cropped_around_its_centre(height: int, width: int) -> None:
    frame = numpy.zeros((32, 64, 3), numpy.uint8)
    frame[:, 16:48] = 200  # the middle half
    stretched = fitted(frame, height=height, width=width, keep_aspect=False, device=CPU)
    cropped = fitted(frame, height=height, width=width, keep_aspect=True, device=CPU)
    assert stretched.shape == cropped.shape == (height, width, 3)
    assert stretched.dtype == torch.uint8
    assert stretched[:, 0].max() < 20 and stretched[:, width // 2].min() > 180
    is_cropped_to_the_middle = width / height <= 1
    assert bool(cropped.min() > 180) == is_cropped_to_the_middle


def test_an_interpolators_sample_ends_with_an_image_of_its_own(
    options: Options, encoders: dict[str, Path]
) -> None:
    """Nine frames as the beginning of a video, the tenth as an image: spec/predict1-diffusion.md 5.3."""
    options = replace(options, num_frames=10, num_chunks=2)
    preparation = plan(options, INTERPOLATOR)
    assert [len(source.starts) for source in preparation.sources] == [2]
    assert prepare(preparation, **encoders) == 2
    data = PreparedFolder(options.output_dir)
    data.check(INTERPOLATOR)
    assert data.latent_shape == (16, 3, 4, 6)
    written = sum(path.stat().st_size for path in options.output_dir.glob("0.*"))
    assert preparation.sample_bytes == pytest.approx(written, rel=0.2)
    tokenizer = Tokenizer(shape=NANO.tokenizer, folder=encoders["tokenizer_dir"], device=CPU)
    with tokenizer:
        [sample, _] = preparation.samples
        frames = numpy.load(sample.source.path)[sample.start : sample.start + 10]
        video = torch.from_numpy(frames).permute(3, 0, 1, 2)[None].float() / 127.5 - 1
        latent = data.batch([0]).latent_BCTHW
        torch.testing.assert_close(latent[:, :, :2], tokenizer.encode(video[:, :, :9]), rtol=0, atol=1e-5)
        last = video[:, :, 9:]
        image, beginning = (tokenizer.encode(last, as_image=as_image) for as_image in (True, False))
    torch.testing.assert_close(latent[:, :, 2:], image, rtol=0, atol=1e-5)
    assert (image - beginning).abs().max() > 1e-3


def test_a_video2worlds_samples_are_those_of_a_text2world(
    options: Options, encoders: dict[str, Path]
) -> None:
    one = replace(options, output_dir=options.output_dir / "one")
    prepare(plan(one), **encoders)
    other = replace(options, output_dir=options.output_dir / "other")
    prepare(plan(other, find_card("Cosmos-Nano-Video2World")), **encoders)
    found = [PreparedFolder(each.output_dir).batch(range(4)).latent_BCTHW for each in (one, other)]
    assert torch.equal(*found)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_frames": 9}, "--num_frames 9 does not fit Cosmos-Nano-WorldInterpolator: its clips have 10"),
        ({"num_frames": 10, "height": 40}, "--height 40"),
        ({"num_frames": 10, "num_chunks": 0}, "--num_chunks 0"),
    ],
)
def test_an_interpolators_clips_have_one_length(options: Options, changes: dict, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        plan(replace(options, **changes), INTERPOLATOR)


@pytest.mark.parametrize(("num_frames", "latent_frames"), [(5, 2), (9, 3)])
def test_predict2s_samples_are_made_by_its_tokenizer_and_hold_four_frames_in_one(
    options: Options, encoders2: dict[str, Path], num_frames: int, latent_frames: int
) -> None:
    options = replace(options, num_frames=num_frames, num_chunks=2)
    preparation = plan(options, PREDICT2)
    made = prepare(preparation, **encoders2)
    assert made == len(preparation.samples) == (4 if num_frames == 5 else 3)
    data = PreparedFolder(options.output_dir)
    data.check(PREDICT2)
    assert data.latent_shape == (16, latent_frames, 4, 6)
    written = sum(path.stat().st_size for path in options.output_dir.glob("0.*"))
    assert preparation.sample_bytes == pytest.approx(written, rel=0.2)
    tokenizer = WanTokenizerStage(
        shape=PREDICT2.tokenizer,  # type: ignore[arg-type]
        folder=encoders2["tokenizer_dir"],
        device=CPU,
    )
    with tokenizer:
        for sample in preparation.samples:
            frames = numpy.load(sample.source.path)[sample.start : sample.start + num_frames]
            video = torch.from_numpy(frames).permute(3, 0, 1, 2)[None].float() / 127.5 - 1
            latent = data.batch([sample.number]).latent_BCTHW
            torch.testing.assert_close(latent, tokenizer.encode(video), rtol=0, atol=1e-5)
    with pytest.raises(DataError, match="was prepared for Cosmos-Nano-Predict2-Video2World, whose tokenizer"):
        data.check(find_card("Cosmos-Nano-Video2World"))
    assert prepare(plan(options, PREDICT2), **encoders2) == 0


def test_predict2_does_not_learn_from_samples_of_another_tokenizer(
    options: Options, encoders: dict[str, Path]
) -> None:
    """The shapes would fit."""
    prepare(plan(options), **encoders)
    with pytest.raises(
        DataError, match=r"Text2World, .* prepare the videos with --model Cosmos-Nano-Predict2"
    ):
        PreparedFolder(options.output_dir).check(PREDICT2)
    with pytest.raises(DataError, match="model Cosmos-Nano-Text2World, not Cosmos-Nano-Predict2"):
        check_output(options.output_dir, plan(options, PREDICT2).settings())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_frames": 1}, r"--num_frames 1 does not fit .*: it takes 4k\+1 frames from 5 to 33"),
        ({"num_frames": 8}, r"--num_frames 8 .* 4k\+1"),
        ({"num_frames": 37}, "--num_frames 37"),
        ({"height": 40}, "--height 40"),
    ],
)
def test_options_that_predict2_cannot_have_are_refused(options: Options, changes: dict, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        plan(replace(options, **changes), PREDICT2)


def test_a_tokenizer_of_the_other_kind_is_refused_before_anything_is_written(
    options: Options, encoders: dict[str, Path]
) -> None:
    with pytest.raises(CheckpointError, match="holds no video tokenizer"):
        prepare(plan(options, PREDICT2), **encoders)
    assert not options.output_dir.exists()
