"""Each transform by what it does to tones, bursts and noise, measured on its output."""

import inspect
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.signal
import scipy.stats
import soundfile
import torch
from torch import Generator, Tensor

from shared.augment import TRANSFORMS, tiled
from shared.background import BackgroundNoise

RATE_HZ, NUM_SAMPLES = 32_000, 160_000
UNLIKELY = 1e-3  # the p-value below which draws are not uniform


def rng(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def named(name: str, **keys: Any) -> Callable[[Tensor, Generator], Tensor]:
    transform = TRANSFORMS[name]
    if "sample_rate_hz" in inspect.signature(transform).parameters:
        keys["sample_rate_hz"] = RATE_HZ
    return lambda waveforms, rng: transform(waveforms, rng, **keys)


def tones(*hz: float, num_samples: int = NUM_SAMPLES) -> Tensor:
    time = torch.arange(num_samples, dtype=torch.float64) / RATE_HZ
    return torch.stack([0.3 * torch.sin(2 * math.pi * f * time) for f in hz]).float()


def burst(at_s: float, hz: float = 3000.0) -> Tensor:
    """A tone of a twentieth of a second, its middle at a time."""
    time = torch.arange(NUM_SAMPLES, dtype=torch.float64) / RATE_HZ
    inside = torch.exp(-(((time - at_s) / 0.02) ** 2))
    return (0.5 * inside * torch.sin(2 * math.pi * hz * time)).float().unsqueeze(0)


def peak_hz(waveform: Tensor) -> float:
    """The strongest frequency, between two bins by a parabola."""
    window = scipy.signal.get_window("hann", len(waveform))
    size = np.log(np.abs(np.fft.rfft(waveform.double().numpy() * window)) + 1e-12)
    k = int(size[1:-1].argmax()) + 1
    a, b, c = size[k - 1 : k + 2]
    return float((k + 0.5 * (a - c) / (a - 2 * b + c)) * RATE_HZ / len(waveform))


def middle_s(waveform: Tensor) -> float:
    """The centre of the energy in seconds."""
    energy = waveform.double().square()
    time = torch.arange(len(waveform)) / RATE_HZ
    return float((energy * time).sum() / energy.sum())


def db(ratio: Tensor) -> np.ndarray:
    return np.asarray(10 * torch.log10(ratio.double()).numpy())


def are_uniform(values: np.ndarray, low: float, high: float) -> bool:
    inside = (values >= low - 1e-3 * (high - low)) & (values <= high + 1e-3 * (high - low))
    return bool(inside.all()) and scipy.stats.kstest(values, "uniform", (low, high - low)).pvalue > UNLIKELY


# Every transform


@pytest.mark.parametrize("name", TRANSFORMS)
def test_the_same_seed_gives_the_same_bits_and_the_input_stays(name: str) -> None:
    waveforms = torch.randn(3, 16_000, generator=rng(1)) * 0.1
    before = waveforms.clone()
    one, two = (named(name)(waveforms, rng(2)) for _ in range(2))
    other = named(name)(waveforms, rng(3))
    assert torch.equal(one, two)
    assert torch.equal(waveforms, before)
    assert torch.equal(one, other) == (name == "peak_normalise")  # whose default range is one number


@pytest.mark.parametrize("name", TRANSFORMS)
def test_silence_stays_silent_and_lengths_and_types_stay(name: str) -> None:
    for dtype in (torch.float32, torch.float16):
        waveforms = torch.zeros(3, 16_001, dtype=dtype)
        waveforms[1] = torch.randn(16_001, generator=rng(1)) * 0.1
        found = named(name)(waveforms, rng(2))
        assert found.shape == waveforms.shape
        assert found.dtype == dtype
        assert not found[0].any()
        assert not found[2].any()
        assert found[1].any()
        assert torch.isfinite(found).all()


@pytest.mark.parametrize("name", sorted(set(TRANSFORMS) - {"peak_normalise"}))
def test_every_clip_gets_a_draw_of_its_own(name: str) -> None:
    waveforms = (torch.randn(16_000, generator=rng(1)) * 0.1).expand(4, -1)
    found = named(name)(waveforms, rng(2))
    assert len({tuple(row.tolist()) for row in found}) == 4


@pytest.mark.parametrize("name", sorted(set(TRANSFORMS) - {"gaussian_noise", "pink_noise", "coloured_noise"}))
def test_float16_is_computed_in_float32(name: str) -> None:
    waveforms = (torch.randn(2, 16_000, generator=rng(1)) * 0.1).half()
    found = named(name)(waveforms, rng(2)).float()
    expected = named(name)(waveforms.float(), rng(2))
    assert (found - expected).abs().max() <= 1e-3 * expected.abs().max()


# Time and pitch


@pytest.mark.parametrize("rate", [0.8, 0.93, 1.1, 1.25])
def test_a_stretch_keeps_the_pitch_and_scales_times(rate: float) -> None:
    stretch = named("time_stretch", rate=(rate, rate))
    for hz in (440.0, 3000.0, 9000.0):
        assert peak_hz(stretch(tones(hz), rng())[0]) == pytest.approx(hz, rel=0.005)
    for at in (1.0, 2.5):
        assert middle_s(stretch(burst(at), rng())[0][: int(NUM_SAMPLES / rate)]) == pytest.approx(
            at / rate, abs=0.02
        )


@pytest.mark.parametrize("rate", [0.8, 0.93, 1.1, 1.25])
def test_another_speed_scales_pitch_and_times(rate: float) -> None:
    play = named("playback_speed", rate=(rate, rate))
    for hz in (440.0, 3000.0, 9000.0):
        assert peak_hz(play(tones(hz), rng())[0]) == pytest.approx(rate * hz, rel=0.0005)
    found = play(burst(2.5), rng())[0][: int(NUM_SAMPLES / rate)]
    assert middle_s(found) == pytest.approx(2.5 / rate, abs=0.001)


@pytest.mark.parametrize("semitones", [-4.0, -1.0, 1.0, 5.0])
def test_a_pitch_shift_scales_the_pitch_and_keeps_times(semitones: float) -> None:
    shift = named("pitch_shift", semitones=(semitones, semitones))
    for hz in (440.0, 3000.0, 9000.0):
        found = shift(tones(hz), rng())[0]
        assert peak_hz(found) == pytest.approx(hz * 2 ** (semitones / 12), rel=0.005)
    for at in (1.0, 2.5, 4.0):
        assert middle_s(shift(burst(at), rng())[0]) == pytest.approx(at, abs=0.02)


def test_a_range_of_shifts_scales_each_clip_by_its_own() -> None:
    found = named("pitch_shift", semitones=(-3.0, 3.0))(tones(*[2000.0] * 40), rng())
    semitones = np.array([12 * math.log2(peak_hz(row) / 2000) for row in found])
    assert are_uniform(semitones, -3.0, 3.0)


def test_the_tone_at_another_speed_is_clean() -> None:
    found = named("playback_speed", rate=(0.97, 0.97))(tones(9000.0), rng())[0].double().numpy()[:-8000]
    size = np.abs(np.fft.rfft(found * scipy.signal.get_window("blackmanharris", len(found)))) ** 2
    hz = np.arange(len(size)) * RATE_HZ / len(found)
    near = np.abs(hz - 0.97 * 9000) < 20
    assert 10 * math.log10(size[~near].sum() / size[near].sum()) < -35


def test_what_would_lie_above_half_the_sample_rate_is_gone() -> None:
    waveforms = tones(14_000.0)
    found = named("playback_speed", rate=(1.25, 1.25))(waveforms, rng())
    assert found.square().mean() < 1e-4 * waveforms.square().mean()


@pytest.mark.parametrize("rate", [0.8, 1.25])
def test_no_silence_appears_behind_a_stretch(rate: float) -> None:
    for name in ("time_stretch", "playback_speed"):
        found = named(name, rate=(rate, rate))(tones(3000.0), rng())[0]
        pieces = found.unfold(0, 1600, 1600).square().mean(dim=1)
        assert pieces.min() > 0.2 * pieces.median()


# Noise


@pytest.mark.parametrize("name", ["gaussian_noise", "pink_noise", "coloured_noise"])
def test_the_signal_to_noise_ratio_is_the_one_drawn(name: str) -> None:
    waveforms = tones(2000.0, num_samples=8000).expand(1000, -1)
    for wanted in (-3.0, 12.0):
        added = named(name, snr_db=(wanted, wanted))(waveforms, rng()) - waveforms
        found = db(waveforms.square().mean(dim=1) / added.square().mean(dim=1))
        assert np.abs(found - wanted).max() < 0.2


@pytest.mark.parametrize("exponent", [0.0, 1.0, 2.0])
def test_noise_falls_by_ten_times_its_exponent_per_decade(exponent: float) -> None:
    waveforms = tones(*[1000.0] * 16)
    added = (
        named("coloured_noise", exponent=(exponent, exponent), snr_db=(0.0, 0.0))(waveforms, rng())
        - waveforms
    )
    hz, density = scipy.signal.welch(added.numpy(), RATE_HZ, nperseg=8192)
    inside = (hz >= 40) & (hz <= 12_000)
    slope = np.polyfit(np.log10(hz[inside]), 10 * np.log10(density.mean(axis=0)[inside]), 1)[0]
    assert slope == pytest.approx(-10 * exponent, abs=1.0)


def test_pink_noise_is_the_noise_of_exponent_one() -> None:
    waveforms = tones(*[1000.0] * 16)
    added = named("pink_noise", snr_db=(0.0, 0.0))(waveforms, rng()) - waveforms
    hz, density = scipy.signal.welch(added.numpy(), RATE_HZ, nperseg=8192)
    inside = (hz >= 40) & (hz <= 12_000)
    slope = np.polyfit(np.log10(hz[inside]), 10 * np.log10(density.mean(axis=0)[inside]), 1)[0]
    assert slope == pytest.approx(-10, abs=1.0)


# What is drawn, recovered from the output


def test_ratios_are_uniform_over_their_range() -> None:
    waveforms = tones(2000.0, num_samples=8000).expand(1000, -1)
    added = named("gaussian_noise", snr_db=(-5.0, 20.0))(waveforms, rng()) - waveforms
    assert are_uniform(db(waveforms.square().mean(dim=1) / added.square().mean(dim=1)), -5.0, 20.0)


def test_gains_and_levels_are_uniform_over_their_range() -> None:
    waveforms = tones(2000.0, num_samples=8000).expand(1000, -1)
    louder = named("gain", gain_db=(-12.0, 6.0))(waveforms, rng())
    assert are_uniform(db(louder.square().mean(dim=1) / waveforms.square().mean(dim=1)), -12.0, 6.0)
    added = named("noise_injection", level_db=(-50.0, -30.0))(waveforms, rng()) - waveforms
    assert are_uniform(np.clip(db(added.square().mean(dim=1)), -50.0, -30.0), -50.0, -30.0)
    peaks = named("peak_normalise", peak_db=(-6.0, -1.0))(waveforms, rng()).abs().amax(dim=1)
    assert are_uniform(db(peaks.square()), -6.0, -1.0)


def test_shifts_are_uniform_and_lose_nothing() -> None:
    waveforms = torch.zeros(1000, 8000)
    waveforms[:, 5000] = 0.5
    found = named("circular_shift")(waveforms, rng())
    assert (found.sum(dim=1) == 0.5).all()
    assert are_uniform((5000 - found.argmax(dim=1).numpy()) % 8000 / 8000, 0.0, 1.0)


def test_masked_shares_and_places_are_uniform() -> None:
    found = named("time_mask", share=(0.1, 0.4))(torch.ones(1000, 8000), rng())
    masked = (found == 0).float()
    assert are_uniform(masked.mean(dim=1).numpy(), 0.1, 0.4)
    begin = masked.argmax(dim=1).numpy()
    assert are_uniform(begin / (8000 - masked.sum(dim=1).numpy()), 0.0, 1.0)
    assert (masked.diff(dim=1).abs().sum(dim=1) <= 2).all()  # one stretch


def test_rates_and_exponents_are_uniform_over_their_range() -> None:
    waveforms = tones(2000.0, num_samples=16_000).expand(300, -1)
    found = named("playback_speed", rate=(0.9, 1.1))(waveforms, rng())
    rates = np.array([peak_hz(row[:14_000]) / 2000 for row in found])
    assert are_uniform(rates, 0.9, 1.1)
    found = named("time_stretch", rate=(0.5, 1.0))(burst(2.0).expand(60, -1), rng())
    rates = np.array([2.0 / middle_s(row) for row in found])
    assert scipy.stats.kstest(rates, "uniform", (0.5, 0.5)).pvalue > UNLIKELY


def test_a_frequency_mask_takes_a_band_and_leaves_the_rest() -> None:
    waveforms = torch.randn(300, 8000, generator=rng(1)) * 0.1
    found = named("frequency_mask", width_hz=(1000.0, 3000.0))(waveforms, rng())
    before, after = torch.fft.rfft(waveforms).abs(), torch.fft.rfft(found).abs()
    gone = after < 1e-3 * before
    assert torch.allclose(after[~gone], before[~gone], rtol=1e-3, atol=1e-4)
    assert are_uniform(gone.sum(dim=1).numpy() * (RATE_HZ / 8000), 1000.0, 3000.0)
    assert (gone.float().diff(dim=1).abs().sum(dim=1) <= 2).all()


def test_a_low_pass_is_three_db_down_at_its_cutoff_and_falls_on() -> None:
    waveforms = tones(500.0, 4000.0, 8000.0)
    found = named("low_pass", cutoff_hz=(4000.0, 4000.0))(waveforms, rng())
    levels = db(found.square().mean(dim=1) / waveforms.square().mean(dim=1))
    assert levels == pytest.approx([0.0, -3.01, -12.3], abs=0.1)
    noise = torch.randn(300, 8000, generator=rng(1)) * 0.1
    passed = named("low_pass", cutoff_hz=(3000.0, 9000.0))(noise, rng())
    size = (torch.fft.rfft(passed).abs() / torch.fft.rfft(noise).abs())[:, 3000].double()  # at 12 kHz
    cutoffs = 12_000 / (1 / size**2 - 1) ** 0.25
    assert are_uniform(cutoffs.numpy(), 3000.0, 9000.0)


# Clips shorter than the grid


def test_a_short_clip_is_repeated_until_it_is_full() -> None:
    waveforms = torch.tensor([[1.0, 2, 3, 0, 0, 0, 0], [1, 2, 3, 4, 5, 6, 7], [0, 0, 0, 0, 0, 0, 0]])
    found = tiled(waveforms, torch.tensor([3, 7, 0]))
    assert found.tolist() == [[1, 2, 3, 1, 2, 3, 1], [1, 2, 3, 4, 5, 6, 7], [0] * 7]


# Backgrounds


def test_backgrounds_of_a_folder_are_heard_at_the_ratio_drawn(tmp_path: Path) -> None:
    for name, hz in (("a.wav", 1000.0), ("b.flac", 2000.0)):
        soundfile.write(tmp_path / name, tones(hz, num_samples=40_000)[0].numpy(), RATE_HZ)
    (tmp_path / "c.wav").write_bytes(b"not a recording")
    noise = BackgroundNoise(
        source=str(tmp_path), sample_rate_hz=RATE_HZ, clip_samples=NUM_SAMPLES, snr_db=(0.0, 20.0)
    )
    waveforms = tones(*[5000.0] * 40)
    added = noise(waveforms, rng()) - waveforms
    assert are_uniform(db(waveforms.square().mean(dim=1) / added.square().mean(dim=1)), 0.0, 20.0)
    assert {round(peak_hz(row), -1) for row in added} == {1000, 2000}
    assert torch.equal(noise(waveforms, rng(1)), noise(waveforms, rng(1)))
    assert not noise(torch.zeros(2, NUM_SAMPLES), rng()).any()


def test_a_folder_without_recordings_is_no_background(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no recordings"):
        BackgroundNoise(source=str(tmp_path), sample_rate_hz=RATE_HZ, clip_samples=NUM_SAMPLES)
    (tmp_path / "c.wav").write_bytes(b"not a recording")
    with pytest.raises(ValueError, match="none of the 1 recordings"):
        BackgroundNoise(source=str(tmp_path), sample_rate_hz=RATE_HZ, clip_samples=NUM_SAMPLES)
