"""Videos through a model: every frame as a picture, everything else as it was."""

from __future__ import annotations

import sys
import threading
import weakref
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

import pixelrt
from pixelrt.errors import BackendError, OutputError, PixelrtError, UsageError, VideoError
from pixelrt.geometry import Size
from pixelrt.runtime.backends.fake import FakeBackend
from pixelrt.runtime.pipelines.image import ImageModel
from pixelrt.runtime.video import flow
from pixelrt.runtime.video.options import VideoOptions
from pixelrt.runtime.video.read import MAX_PACKETS
from pixelrt.runtime.video.run import run_video
from tests.bundles import image_spec, nearest, write_bundle
from tests.runtime.video_clips import Clip, frames_of, moving, packets_of, times_of, tones

LOSSLESS = VideoOptions("ffv1")


def make_model(folder: Path, scale: int = 2, **spec: Any) -> ImageModel:
    """Each pixel repeated ``scale`` times on both axes."""

    def core(x: Any) -> Any:
        return nearest(scale)(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)

    backend = FakeBackend({"core": core, "image": nearest(scale)})
    bundle = write_bundle(folder / f"x{scale}.pixelrt", image_spec(scale=scale, **spec))
    return ImageModel(bundle, backends=(backend,))


@pytest.fixture
def model(tmp_path: Path) -> ImageModel:
    return make_model(tmp_path)


@pytest.fixture
def same(tmp_path: Path) -> ImageModel:
    return make_model(tmp_path, scale=1)


def test_every_frame_is_what_the_picture_would_be(
    tmp_path: Path, srgan_bundle: pixelrt.Bundle
) -> None:
    source = Clip("ffv1", "bgr0", audio="").write(tmp_path / "in.mkv")
    with pixelrt.load(srgan_bundle.root, precision="float32") as network:
        done = run_video(network, source, tmp_path / "out.mkv", LOSSLESS)
        expected = [network(frame) for frame in moving()]
    np.testing.assert_array_equal(frames_of(source), moving())
    np.testing.assert_array_equal(frames_of(tmp_path / "out.mkv"), expected)
    assert (done.frames, done.source_size, done.size) == (12, Size(36, 48), Size(72, 96))
    assert done.notes == ()


@pytest.mark.parametrize("bits", [10, 12])
def test_deep_video_goes_through_the_float_graph(
    tmp_path: Path, same: ImageModel, bits: int
) -> None:
    """With a network that changes nothing, all bits come back; the uint8 graph is not used."""
    form = f"gbrp{bits}le"
    with av.open(str(tmp_path / "in.mkv"), "w") as target:
        stream = target.add_stream("ffv1", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 16, form
        rng = np.random.default_rng(0)
        given = rng.integers(0, 2**bits, (3, 16, 64, 3), dtype=np.uint16)
        for k, pixels in enumerate(given):
            frame = av.VideoFrame.from_ndarray(pixels, format=form)
            frame.pts, frame.time_base = k, Fraction(1, 25)
            target.mux(stream.encode(frame))
        target.mux(stream.encode(None))
    run_video(same, tmp_path / "in.mkv", tmp_path / "out.mkv", LOSSLESS)
    with av.open(str(tmp_path / "out.mkv")) as made:
        frames = list(made.decode(video=0))
    assert {frame.format.name for frame in frames} == {form}
    np.testing.assert_array_equal([frame.to_ndarray() for frame in frames], given)
    assert list(same._sessions) == ["core"]


@pytest.mark.parametrize(
    ("codec", "expected"),
    [("libx264", "yuv420p10le"), ("libx265", "yuv420p10le"), ("libsvtav1", "yuv420p10le")],
)
def test_ten_bits_stay_ten_bits(
    tmp_path: Path, model: ImageModel, codec: str, expected: str
) -> None:
    frames = moving(6, 64, 96)
    source = Clip(pixel_format="yuv420p10le", audio="", frames=frames).write(tmp_path / "in.mkv")
    run_video(model, source, tmp_path / "out.mkv", VideoOptions(codec))
    with av.open(str(tmp_path / "out.mkv")) as made:
        assert made.streams.video[0].pix_fmt == expected
    given, made = frames_of(source), np.array(frames_of(tmp_path / "out.mkv"), int)
    assert np.abs(made[:, ::2, ::2] - given).mean() < 3


@pytest.mark.parametrize("suffix", ["mp4", "mov", "mkv"])
def test_sound_and_times_are_kept(tmp_path: Path, model: ImageModel, suffix: str) -> None:
    source = Clip().write(tmp_path / f"in.{suffix}")
    target = tmp_path / f"out.{suffix}"
    assert run_video(model, source, target).notes == ()
    assert packets_of(source, "audio")
    assert packets_of(target, "audio") == packets_of(source, "audio")
    assert times_of(target) == times_of(source)
    with av.open(str(target)) as made, av.open(str(source)) as given:
        assert made.streams.video[0].average_rate == given.streams.video[0].average_rate
        assert made.streams.video[0].codec_context.name == "h264"
        assert made.duration == given.duration
    close = np.abs(np.array(frames_of(target), int)[:, ::2, ::2] - np.array(frames_of(source)))
    assert close.mean() < 3


@pytest.mark.parametrize(("source", "target"), [("mkv", "mkv"), ("mkv", "mp4"), ("mp4", "mov")])
def test_a_variable_frame_rate_stays_one(
    tmp_path: Path, model: ImageModel, source: str, target: str
) -> None:
    pts = [0, 33, 40, 100, 250, 251, 300, 410, 420, 500, 730, 800]
    given = Clip(pts=pts, time_base=Fraction(1, 1000)).write(tmp_path / f"in.{source}")
    run_video(model, given, tmp_path / f"out.{target}")
    assert [round(1000 * t) for t in times_of(given)] == pts
    assert times_of(tmp_path / f"out.{target}") == times_of(given)


def test_a_broadcast_starts_at_zero(tmp_path: Path, model: ImageModel) -> None:
    """MPEG-TS starts at any time; sound and picture move by the same."""
    clip = Clip(container_options={"output_ts_offset": "5000"}, frames=moving(40))
    source = clip.write(tmp_path / "in.ts")
    given = times_of(source)
    assert given[0] >= 5000
    run_video(model, source, tmp_path / "out.mp4")
    made = times_of(tmp_path / "out.mp4")
    assert [t - made[0] for t in made] == [t - given[0] for t in given]
    assert made[0] < Fraction(1, 10)
    apart = [
        packets_of(path, "audio")[0][0] * packets_of(path, "audio")[0][2] - times_of(path)[0]
        for path in (source, tmp_path / "out.mp4")
    ]
    assert abs(apart[0] - apart[1]) < Fraction(1, 1000)  # MP4 counts the start in ms


def test_aspect_and_tags_are_kept(tmp_path: Path, model: ImageModel) -> None:
    """HLG in BT.2020, anamorphic."""
    tags = {"colorspace": 9, "color_range": 1, "color_primaries": 9, "color_trc": 18}
    clip = Clip(pixel_format="yuv420p10le", tags=tags, aspect=Fraction(4, 3))
    source = clip.write(tmp_path / "in.mp4")
    run_video(model, source, tmp_path / "out.mp4")
    for path in (source, tmp_path / "out.mp4"):
        with av.open(str(path)) as opened:
            stream = opened.streams.video[0]
            frame = next(opened.decode(video=0))
            assert {name: getattr(frame, name) for name in tags} == tags
            assert {name: getattr(stream.codec_context, name) for name in tags} == tags
            assert stream.sample_aspect_ratio == Fraction(4, 3)


@pytest.mark.parametrize(
    ("size", "matrix", "full"),
    [((36, 48), 6, False), ((720, 1280), 1, False), ((36, 48), 1, True), ((36, 48), 6, True)],
)
def test_what_is_untagged_is_said_in_the_result(
    tmp_path: Path, size: tuple[int, int], matrix: int, full: bool
) -> None:
    """The colours are those of the source read with the usual matrix of its size, and the
    larger result says which, since it would be read with another one."""
    model = make_model(tmp_path, scale=4 if size[0] < 700 else 1)
    tags = {"color_range": 2, "colorspace": matrix} if full else {}
    plain = np.full((*size, 3), (200, 60, 30), np.uint8)
    clip = Clip(pixel_format="yuv444p", audio="", frames=[plain] * 2, tags=tags)
    if not full:
        clip.tags = {"colorspace": matrix}
        clip.codec = "ffv1"  # stores no tags itself
    source = clip.write(tmp_path / ("in.mp4" if full else "in.avi"))
    run_video(model, source, tmp_path / "out.mp4", VideoOptions(pixel_format="yuv444p"))
    with av.open(str(tmp_path / "out.mp4")) as made:
        frame = next(made.decode(video=0))
        assert (frame.colorspace, frame.color_range) == (matrix, 2 if full else 1)
        rgb = frame.reformat(format="rgb24", src_colorspace=1 if matrix == 1 else 5).to_ndarray()
    assert np.abs(rgb.astype(int) - plain[0, 0]).max() <= 4


@pytest.mark.parametrize("rotation", [90, 180, -90])
def test_frames_are_turned_upright(tmp_path: Path, model: ImageModel, rotation: int) -> None:
    source = Clip("ffv1", "bgr0", rotation=rotation, frames=moving(3)).write(tmp_path / "in.mkv")
    run_video(model, source, tmp_path / "out.mkv", LOSSLESS)
    expected = [np.rot90(model(frame), rotation // 90) for frame in moving(3)]
    np.testing.assert_array_equal(frames_of(tmp_path / "out.mkv"), expected)
    with av.open(str(tmp_path / "out.mkv")) as made:
        assert next(made.decode(video=0)).rotation == 0


def test_pixels_that_are_not_square_are_turned_too(tmp_path: Path, model: ImageModel) -> None:
    source = Clip(rotation=90, aspect=Fraction(2, 1)).write(tmp_path / "in.mp4")
    assert run_video(model, source, tmp_path / "out.mkv").notes == ()
    with av.open(str(tmp_path / "out.mkv")) as made:
        assert made.streams.video[0].sample_aspect_ratio == Fraction(1, 2)
    lost = run_video(model, source, tmp_path / "lost.mkv", LOSSLESS).notes
    assert lost == ("ffv1 in matroska does not say that its pixels are 1:2; they show as square",)


def test_resizing_keeps_the_shape_on_the_screen(tmp_path: Path, model: ImageModel) -> None:
    source = Clip(rotation=90, frames=moving(3)).write(tmp_path / "in.mp4")
    done = run_video(model, source, tmp_path / "out.mp4", resize=(32, 32))
    assert (done.source_size, done.size) == (Size(32, 32), Size(64, 64))
    with av.open(str(tmp_path / "out.mp4")) as made:
        assert made.streams.video[0].sample_aspect_ratio == Fraction(36, 48)


def test_an_odd_side_gets_one_more_row(tmp_path: Path, same: ImageModel) -> None:
    frames = moving(3, 35, 47)
    source = Clip("ffv1", "bgr0", audio="", frames=frames).write(tmp_path / "in.mkv")
    done = run_video(same, source, tmp_path / "out.mp4")
    assert done.size == Size(36, 48)
    assert "even sides" in done.notes[0]
    made = np.array(frames_of(tmp_path / "out.mp4"), int)
    np.testing.assert_allclose(made[:, 35], made[:, 34], atol=12)
    exact = run_video(same, source, tmp_path / "e.mp4", VideoOptions(pixel_format="yuv444p"))
    assert (exact.size, exact.notes) == (Size(35, 47), ())
    assert frames_of(tmp_path / "e.mp4")[0].shape == (35, 47, 3)


def test_grey_results_become_grey_video(tmp_path: Path) -> None:
    model = make_model(tmp_path, task="translation", channels_in=1, channels_out=1)
    source = Clip("ffv1", "bgr0", audio="").write(tmp_path / "in.mkv")
    run_video(model, source, tmp_path / "out.mkv", LOSSLESS)
    for made, frame in zip(frames_of(tmp_path / "out.mkv"), moving(), strict=True):
        np.testing.assert_array_equal(made, np.broadcast_to(model(frame), made.shape))


# --- streams beside the picture -------------------------------------------------------


def rich_file(path: Path) -> Path:
    """Two sounds, subtitles, a font, chapters and a title."""
    plain = Clip(options={"bf": "0"}).write(path.with_name("plain.mkv"))
    text = path.with_name("text.srt")
    text.write_text("1\n00:00:00,100 --> 00:00:00,200\nhello\n")
    with av.open(str(path), "w") as target, av.open(str(plain)) as a, av.open(str(text)) as b:
        streams = [target.add_stream_from_template(a.streams[k], opaque=True) for k in (0, 1, 1)]
        streams.append(target.add_stream_from_template(b.streams[0]))
        target.add_attachment("font.ttf", "font/ttf", b"not a font")
        streams[1].metadata["language"] = "fra"
        streams[2].metadata["language"] = "deu"
        streams[2].disposition = av.stream.Disposition.comment
        target.metadata["title"] = "a title"
        target.set_chapters(
            [
                {
                    "id": 1,
                    "start": 0,
                    "end": 200,
                    "time_base": Fraction(1, 1000),
                    "metadata": {"title": "one"},
                }
            ]
        )
        for packet in [*a.demux(), *b.demux()]:
            if not packet.size:
                continue
            packet.dts = packet.pts if packet.dts is None else packet.dts
            kind, data = packet.stream.type, bytes(packet)
            times = packet.pts, packet.dts, packet.duration, packet.time_base
            for stream in streams:
                if stream.type == kind:
                    copy = av.Packet(data)
                    copy.pts, copy.dts, copy.duration, copy.time_base = times
                    copy.stream = stream
                    copy.is_keyframe = packet.is_keyframe
                    target.mux(copy)
    return path


def test_all_other_streams_are_kept_where_they_fit(tmp_path: Path, model: ImageModel) -> None:
    source = rich_file(tmp_path / "in.mkv")
    assert run_video(model, source, tmp_path / "out.mkv").notes == ()
    for kind in ("audio", "subtitle"):
        assert packets_of(tmp_path / "out.mkv", kind) == packets_of(source, kind)
    with av.open(str(tmp_path / "out.mkv")) as made:
        assert [s.type for s in made.streams] == [
            *("video", "audio", "audio"),
            "subtitle",
            "attachment",
        ]
        assert [s.language for s in made.streams.audio] == ["fra", "deu"]
        assert made.streams[2].disposition & av.stream.Disposition.comment
        assert made.streams[4].data == b"not a font"
        assert made.metadata["title"] == "a title"
        assert made.chapters()[0]["metadata"] == {"title": "one"}


def test_what_the_container_does_not_take_is_told(tmp_path: Path, model: ImageModel) -> None:
    source = rich_file(tmp_path / "in.mkv")
    notes = run_video(model, source, tmp_path / "out.mp4").notes
    assert [note.split(" (")[0] for note in notes] == ["subtitle stream 3", "attachment stream 4"]
    with av.open(str(tmp_path / "out.mp4")) as made:
        assert [s.type for s in made.streams] == ["video", "audio", "audio", "data"]
        assert made.chapters()[0]["metadata"] == {"title": "one"}  # the data are their titles
    assert run_video(model, tmp_path / "out.mp4", tmp_path / "again.mp4").notes == ()
    with av.open(str(tmp_path / "again.mp4")) as made:
        assert [s.type for s in made.streams] == ["video", "audio", "audio", "data"]
        assert made.chapters()[0]["metadata"] == {"title": "one"}


def test_a_cover_is_no_video(tmp_path: Path, model: ImageModel) -> None:
    plain = Clip().write(tmp_path / "plain.mp4")
    with av.open(str(tmp_path / "in.mp4"), "w") as target, av.open(str(plain)) as given:
        cover = target.add_stream("png", rate=1)
        cover.width, cover.height, cover.pix_fmt = 20, 20, "rgb24"
        cover.disposition = av.stream.Disposition.attached_pic
        video = target.add_stream_from_template(given.streams.video[0], opaque=True)
        picture = av.VideoFrame.from_ndarray(np.full((20, 20, 3), 7, np.uint8))
        target.mux(cover.encode(picture))
        for packet in given.demux(video=0):
            if packet.size:
                packet.stream = video
                target.mux(packet)
    done = run_video(model, tmp_path / "in.mp4", tmp_path / "out.mp4")
    assert (done.frames, done.source_size) == (12, Size(36, 48))
    with av.open(str(tmp_path / "out.mp4")) as made:
        kinds = [bool(s.disposition & av.stream.Disposition.attached_pic) for s in made.streams]
        assert sorted(kinds) == [False, True]


def test_sound_that_does_not_fit_is_an_error_unless_dropped(
    tmp_path: Path, model: ImageModel
) -> None:
    source = Clip().write(tmp_path / "in.mp4")
    target = tmp_path / "out.webm"
    with pytest.raises(OutputError, match="webm cannot hold the audio") as caught:
        run_video(model, source, target, VideoOptions("libvpx-vp9"))
    assert "aac" in caught.value.found
    assert "--no-audio" in caught.value.hint
    assert not target.exists()
    run_video(model, source, target, VideoOptions("libvpx-vp9", audio="drop"))
    with av.open(str(target)) as made:
        assert [s.type for s in made.streams] == ["video"]


def test_sound_that_goes_on_after_the_picture(tmp_path: Path, model: ImageModel) -> None:
    """More packets than are handed on at once."""
    source = tmp_path / "in.mkv"
    plain = Clip(audio="").write(tmp_path / "plain.mkv")
    with av.open(str(source), "w") as target, av.open(str(plain)) as given:
        video = target.add_stream_from_template(given.streams.video[0], opaque=True)
        sound = target.add_stream("aac", rate=44100)
        for packet in given.demux():
            if packet.size:
                packet.stream = video
                target.mux(packet)
        for k in range(3 * MAX_PACKETS // 2):
            for tone in tones(k, sound):
                target.mux(sound.encode(tone))
        target.mux(sound.encode(None))
    assert len(packets_of(source, "audio")) > 2 * MAX_PACKETS
    run_video(model, source, tmp_path / "out.mkv")
    assert packets_of(tmp_path / "out.mkv", "audio") == packets_of(source, "audio")


# --- what is told ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("suffix", "clip", "words"),
    [
        ("mkv", Clip("ffv1", "bgra"), "transparency is left out"),
        ("mkv", Clip(rotation=45), "odd angle"),
        ("mkv", Clip(options={"flags": "+ildct+ilme"}), "it is interlaced"),
        ("h264", Clip(audio="", options={"bf": "0"}), "have no time"),
    ],
)
def test_what_is_odd_about_a_source_is_told(
    tmp_path: Path, model: ImageModel, suffix: str, clip: Clip, words: str
) -> None:
    done = run_video(model, clip.write(tmp_path / f"in.{suffix}"), tmp_path / "out.mkv")
    assert done.frames == 12
    assert [note for note in done.notes if words in note]
    assert len(done.notes) == 1


def test_frames_that_the_decoder_repaired_are_told(tmp_path: Path, model: ImageModel) -> None:
    source = Clip(audio="", frames=moving(12, 144, 192), options={"bf": "0"}).write(
        tmp_path / "in.mp4"
    )
    data = bytearray(source.read_bytes())
    with av.open(str(source)) as opened:
        first = next(opened.demux(video=0))
    middle = first.pos + first.size * 3 // 4
    data[middle : middle + 40] = bytes(40)
    source.write_bytes(data)
    done = run_video(model, source, tmp_path / "out.mp4")
    assert done.frames == 12
    assert "the decoder repaired them" in done.notes[0]


# --- memory and order -----------------------------------------------------------------


def test_frames_in_memory_do_not_grow_with_the_length(
    tmp_path: Path, model: ImageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One is read ahead and one in the network; one comes from it and one is being written."""
    alive = {"in": 0, "out": 0}
    most: list[tuple[int, int]] = []

    def count(array: Any, what: str) -> Any:
        alive[what] += 1
        weakref.finalize(array, lambda: alive.update({what: alive[what] - 1}))
        return array

    steps, run_array = flow.VideoReader.steps, model.run_array

    def reading(self: Any, *arguments: Any) -> Any:
        for step in steps(self, *arguments):
            if step.pixels is not None:
                count(step.pixels, "in")
            yield step
            del step

    def running(array: Any, *rest: Any) -> Any:
        result = count(run_array(array, *rest), "out")
        most.append((alive["in"], alive["out"]))
        return result

    monkeypatch.setattr(flow.VideoReader, "steps", reading)
    monkeypatch.setattr(model, "run_array", running)
    source = Clip(audio="", frames=moving(60)).write(tmp_path / "in.mp4")
    assert run_video(model, source, tmp_path / "out.mp4").frames == 60
    assert len(most) == 60
    assert max(given for given, _ in most) <= 2
    assert max(made for _, made in most) <= 2
    assert alive == {"in": 0, "out": 0}


def test_decoding_and_encoding_go_on_beside_the_network(
    tmp_path: Path, model: ImageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The network of each frame waits for the next one's decoder, and the encoder of each for
    the next one's network: this ends only where they are beside one another."""
    count = 12
    decoded = [threading.Event() for _ in range(count)]
    running = [threading.Event() for _ in range(count)]
    steps, write_frame = flow.VideoReader.steps, flow.VideoWriter.write
    numbers = {"read": 0, "run": 0, "written": 0}

    def reading(self: Any, *arguments: Any) -> Any:
        for step in steps(self, *arguments):
            if step.pixels is not None:
                decoded[numbers["read"]].set()
                numbers["read"] += 1
            yield step

    def network(array: Any, *_: Any) -> Any:
        k = numbers["run"]
        numbers["run"] += 1
        running[k].set()
        assert k + 1 >= count or decoded[k + 1].wait(20)
        assert k + 2 >= count or not decoded[k + 2].is_set()
        return nearest()(array[None])[0]

    def writing(self: Any, packets: Any, pixels: Any, *times: Any) -> None:
        if pixels is not None:
            k = numbers["written"]
            numbers["written"] += 1
            assert k + 1 >= count or running[k + 1].wait(20)
        write_frame(self, packets, pixels, *times)

    monkeypatch.setattr(flow.VideoReader, "steps", reading)
    monkeypatch.setattr(flow.VideoWriter, "write", writing)
    monkeypatch.setattr(model, "run_array", network)
    told: list[tuple[int, int]] = []
    source = Clip().write(tmp_path / "in.mp4")
    run_video(model, source, tmp_path / "out.mp4", progress=lambda *n: told.append(n))
    assert numbers == dict.fromkeys(numbers, count)
    assert told == [(k, count) for k in range(count + 1)]


@pytest.mark.parametrize("error", [BackendError("gone"), KeyboardInterrupt()])
def test_what_stops_a_run_leaves_nothing(
    tmp_path: Path, model: ImageModel, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    run_array, calls = model.run_array, []

    def running(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 5:
            raise error
        return run_array(*arguments)

    monkeypatch.setattr(model, "run_array", running)
    source = Clip().write(tmp_path / "in.mp4")
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(type(error)):
        run_video(model, source, tmp_path / "out.mp4")
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    assert not [thread for thread in threading.enumerate() if "pixelrt" in thread.name]


# --- what is wrong with a source ------------------------------------------------------


def cut(path: Path, target: Path, share: float) -> Path:
    data = path.read_bytes()
    target.write_bytes(data[: int(len(data) * share)])
    return target


def bad_sources(folder: Path) -> dict[str, tuple[Path, str]]:
    """Files with the words that tell what is wrong with each."""
    good = Clip(container_options={"movflags": "+faststart"}).write(folder / "good.mp4")
    matroska, avi = (
        Clip().write(folder / "good.mkv"),
        Clip(audio="pcm_s16le").write(folder / "good.avi"),
    )
    places = {name: folder / f"{name}.mp4" for name in ("text", "empty", "playlist", "flipped")}
    places["text"].write_text("this is not a video at all, " * 20)
    places["empty"].write_bytes(b"")
    places["playlist"].write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{matroska}\n")
    with av.open(str(folder / "sound.mp4"), "w") as target:
        sound = target.add_stream("aac", rate=44100)
        for k in range(3):
            for tone in tones(k, sound):
                target.mux(sound.encode(tone))
        target.mux(sound.encode(None))
    data = bytearray(good.read_bytes())
    start = data.index(b"mdat")
    with av.open(str(good)) as opened:
        first = next(p for p in opened.demux(video=0) if p.size)
        later = [p for p in opened.demux(video=0) if p.size][2]
    assert start < first.pos
    data[later.pos : later.pos + 4] = b"\x7f\xff\xff\xff"  # the length of a unit
    places["flipped"].write_bytes(data)
    return {
        "missing": (folder / "missing.mp4", "cannot be opened: no such file"),
        "folder": (folder, "cannot be opened: is a directory"),
        "empty": (places["empty"], "is empty"),
        "text": (places["text"], "cannot be read as a video"),
        "playlist": (places["playlist"], "cannot be read as a video"),
        "sound": (folder / "sound.mp4", "no video stream"),
        "cut mp4": (cut(good, folder / "cut.mp4", 0.7), "is cut short"),
        "cut mkv": (cut(matroska, folder / "cut.mkv", 0.7), "is cut short"),
        "cut avi": (cut(avi, folder / "cut.avi", 0.7), "is cut short"),
        "no index": (cut(Clip().write(folder / "m.mp4"), folder / "n.mp4", 0.5), "is cut short"),
        "flipped": (places["flipped"], "is damaged after 0."),
        "sizes": (changing(folder / "sizes.ts"), "change their size"),
        "no frames": (no_frames(good, folder / "none.mp4"), "no frame"),
    }


def changing(path: Path) -> Path:
    """Two transport streams, one after the other, as broadcasts are put together."""
    parts = [moving(30, 36, 48), moving(30, 48, 64)]
    data = [
        Clip(audio="", frames=part, options={"bf": "0"})
        .write(path.with_name(f"{k}.ts"))
        .read_bytes()
        for k, part in enumerate(parts)
    ]
    path.write_bytes(b"".join(data))
    return path


def no_frames(source: Path, path: Path) -> Path:
    """Sound beside a video stream of which no packet can be decoded."""
    data = bytearray(source.read_bytes())
    with av.open(str(source)) as opened:
        for packet in opened.demux(video=0):
            if packet.size:
                data[packet.pos : packet.pos + packet.size] = b"\x7f" * packet.size
    path.write_bytes(data)
    return path


KINDS = (
    *("missing", "folder", "empty", "text", "playlist", "sound", "cut mp4", "cut mkv"),
    *("cut avi", "no index", "flipped", "sizes", "no frames"),
)


@pytest.mark.parametrize("kind", KINDS)
def test_each_fault_of_a_source_has_its_message(
    tmp_path: Path, model: ImageModel, kind: str
) -> None:
    sources = bad_sources(tmp_path)
    assert set(sources) == set(KINDS)
    path, words = sources[kind]
    with pytest.raises(VideoError) as caught:
        run_video(model, path, tmp_path / "x.mp4")
    assert words in str(caught.value).lower().replace("  ", " ")
    assert str(path) in str(caught.value)
    assert not (tmp_path / "x.mp4").exists()


def test_frames_that_are_too_large(tmp_path: Path, model: ImageModel) -> None:
    source = Clip().write(tmp_path / "in.mp4")
    with pytest.raises(VideoError, match="too large") as caught:
        run_video(model, source, tmp_path / "out.mp4", max_pixels=1000)
    assert "48x36" in caught.value.found


@pytest.mark.parametrize(
    ("name", "options", "error", "words"),
    [
        ("out.xyz", {}, UsageError, "does not say which video container"),
        ("out.mp4", {"codec": "nonsense"}, BackendError, "no video encoder nonsense"),
        ("out.mp4", {"codec": "aac"}, BackendError, "no video encoder aac"),
        ("out.webm", {}, OutputError, "webm cannot hold h264"),
        ("out.mkv", {"codec": "ffv1", "crf": 3}, UsageError, "ffv1 takes no crf"),
        ("out.mp4", {"crf": 99}, UsageError, "0 to 51"),
        ("out.mp4", {"pixel_format": "rgb24"}, UsageError, "pixel format rgb24"),
        ("nowhere/out.mp4", {}, OutputError, "folder does not exist"),
    ],
)
def test_wrong_choices(
    tmp_path: Path,
    model: ImageModel,
    name: str,
    options: dict[str, Any],
    error: type[PixelrtError],
    words: str,
) -> None:
    source = Clip(audio="").write(tmp_path / "in.mp4")
    with pytest.raises(error) as caught:
        run_video(model, source, tmp_path / name, VideoOptions(**options))
    assert words in str(caught.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.mp4", "x2.pixelrt"]


def test_an_existing_file_is_kept(tmp_path: Path, model: ImageModel) -> None:
    source, target = Clip().write(tmp_path / "in.mp4"), tmp_path / "out.mp4"
    target.write_bytes(b"precious")
    with pytest.raises(OutputError, match="exists"):
        run_video(model, source, target)
    assert target.read_bytes() == b"precious"
    assert run_video(model, source, target, overwrite=True).frames == 12


def test_without_pyav_the_extra_is_named(
    tmp_path: Path, model: ImageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Clip().write(tmp_path / "in.mp4")
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(BackendError, match="package av") as caught:
        run_video(model, source, tmp_path / "out.mp4")
    assert "pixelrt[video]" in caught.value.hint
