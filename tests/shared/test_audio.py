from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from shared.audio import Clip, ClipDecoder, read_header, to_int16
from shared.clips import ClipConfig

GRID = ClipConfig(sample_rate_hz=8000, clip_seconds=1.0, hop_seconds=1.0, min_tail_seconds=0.25).grid()


def decode(path: Path) -> tuple[list[Clip], ClipDecoder]:
    decoder = ClipDecoder(path, read_header(path), GRID)
    return list(decoder), decoder


def noise(num_frames: int, seed: int = 0) -> np.ndarray:
    return (0.1 * np.random.default_rng(seed).standard_normal(num_frames)).astype(np.float32)


def test_clips_are_the_recording_cut_and_padded(tmp_path: Path) -> None:
    samples = noise(8000 * 2 + 3000)
    soundfile.write(tmp_path / "x.wav", samples, 8000, subtype="FLOAT")
    clips, decoder = decode(tmp_path / "x.wav")
    assert np.array_equal(np.concatenate([clip.samples for clip in clips])[: len(samples)], samples)
    assert [clip.valid_samples for clip in clips] == [8000, 8000, 3000]
    assert not clips[-1].samples[3000:].any()
    assert decoder.finding.status == "ok"


def test_long_recordings_stream_to_the_same_clips_as_decoded_at_once(tmp_path: Path) -> None:
    samples = noise(48_000 * 30)
    soundfile.write(tmp_path / "x.flac", samples, 48_000)
    clips, decoder = decode(tmp_path / "x.flac")
    import soxr

    whole = soxr.resample(soundfile.read(tmp_path / "x.flac", dtype="float32")[0], 48_000, 8000)
    streamed = np.concatenate([clip.samples for clip in clips])
    assert len(clips) == 30
    assert np.abs(streamed[: len(whole)] - whole).max() < 1e-5
    assert decoder.finding.status == "ok"


@pytest.mark.parametrize("rate_hz", [8000, 22_050, 44_100, 96_000])
def test_a_tone_keeps_its_frequency_from_any_rate(tmp_path: Path, rate_hz: int) -> None:
    time = np.arange(rate_hz) / rate_hz
    soundfile.write(tmp_path / "x.wav", 0.5 * np.sin(2 * np.pi * 1000 * time), rate_hz)
    (clip,), _ = decode(tmp_path / "x.wav")
    assert np.abs(np.fft.rfft(clip.samples)).argmax() == 1000
    assert clip.valid_samples == 8000


def test_stereo_becomes_the_mean_of_its_channels(tmp_path: Path) -> None:
    left, right = noise(8000, 1), noise(8000, 2)
    soundfile.write(tmp_path / "x.wav", np.column_stack([left, right]), 8000, subtype="FLOAT")
    (clip,), _ = decode(tmp_path / "x.wav")
    assert np.allclose(clip.samples, (left + right) / 2, atol=1e-7)


def test_a_recording_shorter_than_a_clip_is_padded_and_short(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "x.wav", noise(500), 8000)
    (clip,), decoder = decode(tmp_path / "x.wav")
    assert (clip.valid_samples, decoder.finding.status) == (500, "short")


def test_nan_and_infinite_samples_are_silenced_and_named(tmp_path: Path) -> None:
    samples = noise(8000)
    samples[[5, 6, 7]] = [np.nan, np.inf, -np.inf]
    soundfile.write(tmp_path / "x.wav", samples, 8000, subtype="FLOAT")
    (clip,), decoder = decode(tmp_path / "x.wav")
    assert np.isfinite(clip.samples).all()
    assert decoder.finding.status == "damaged"
    assert decoder.problems == ["3 samples were NaN or infinite and are set to 0"]


@pytest.mark.parametrize("suffix", ["ogg", "mp3", "flac", "wav"])
def test_a_truncated_file_keeps_its_clips_and_is_named_damaged(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x.{suffix}"
    soundfile.write(path, noise(8000 * 20), 8000)
    header = read_header(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    decoder = ClipDecoder(path, header, GRID)  # the plan was made before the file was cut
    clips = list(decoder)
    assert len(clips) == 20
    assert clips[0].valid_samples == 8000
    assert clips[-1].valid_samples == 0
    assert not clips[-1].samples.any()
    assert decoder.finding.status == "damaged"
    assert any("declared frames could be decoded" in line for line in decoder.problems)


@pytest.mark.parametrize("suffix", ["ogg", "mp3", "flac", "wav"])
@pytest.mark.parametrize("kept", [0.95, 0.5, 0.2])
def test_a_file_that_was_cut_before_the_plan_is_damaged_too(tmp_path: Path, kept: float, suffix: str) -> None:
    """libsndfile takes an ogg or wav that was cut off for a shorter recording."""
    path = tmp_path / f"x.{suffix}"
    soundfile.write(path, noise(8000 * 30), 8000)
    assert decode(path)[1].finding.status == "ok"
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * kept)])
    _, decoder = decode(path)
    assert decoder.finding.status == "damaged"
    assert decoder.problems


def test_headerless_audio_says_so(tmp_path: Path) -> None:
    (tmp_path / "x.raw").write_bytes(bytes(1000))
    with pytest.raises(ValueError, match="no header"):
        read_header(tmp_path / "x.raw")


def test_a_file_that_disappears_is_rows_of_zeros_and_unreadable(tmp_path: Path) -> None:
    path = tmp_path / "x.wav"
    soundfile.write(path, noise(16_000), 8000)
    header = read_header(path)
    path.unlink()
    decoder = ClipDecoder(path, header, GRID)
    assert [clip.valid_samples for clip in decoder] == [0, 0]
    assert decoder.finding.status == "unreadable"


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", "empty"), (b"<html><body>404</body></html>" * 20, "cannot read it")],
)
def test_what_is_no_audio_says_why(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "x.ogg"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=reason):
        read_header(path)


def test_a_missing_file_and_one_without_samples_say_so(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such file"):
        read_header(tmp_path / "x.ogg")
    soundfile.write(tmp_path / "x.wav", np.zeros(0), 8000)
    with pytest.raises(ValueError, match="no samples"):
        read_header(tmp_path / "x.wav")


@given(st.floats(1e-6, 50.0), st.integers(0, 1000))
def test_int16_times_gain_is_the_waveform(scale: float, seed: int) -> None:
    samples = (noise(256, seed) * scale).astype(np.float32)
    stored, gain = to_int16(samples)
    assert np.abs(stored).max() == 32767
    assert np.abs(stored * np.float32(gain) - samples).max() <= 0.51 * gain


def test_silence_is_stored_as_silence() -> None:
    stored, gain = to_int16(np.zeros(10, np.float32))
    assert not stored.any()
    assert gain > 0
