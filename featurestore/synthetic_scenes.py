"""Backgrounds and distance: what a song has to be heard through."""

import numpy as np
import scipy.signal

from featurestore.synthetic_songs import RATE_HZ

SCENES = ("quiet", "wind", "rain", "insects")


def background(num_samples: int, scene: str, rng: np.random.Generator) -> np.ndarray:
    """Return a background of RMS 1: pink noise, and wind, rain or insects over it."""
    noise = pink_noise(num_samples, rng)
    match scene:
        case "quiet":
            pass
        case "wind":
            gusts = _slow_envelope(num_samples, 0.3, rng)
            noise = noise + 4 * gusts * _band(rng.standard_normal(num_samples), 20, 400)
        case "rain":
            drops = rng.standard_normal(num_samples) * (rng.random(num_samples) < 0.002)
            noise = (
                noise
                + 25 * _band(drops, 1500, 12_000)
                + 0.3 * _band(rng.standard_normal(num_samples), 2000, 12_000)
            )
        case "insects":
            time = np.arange(num_samples) / RATE_HZ
            pitch, beat = rng.uniform(4500, 9000), rng.uniform(20, 60)
            chirp = np.maximum(0, np.sin(2 * np.pi * beat * time))
            tone = np.sin(2 * np.pi * pitch * time + 0.5 * np.sin(2 * np.pi * 3 * time))
            noise = noise + 1.2 * chirp * tone * (0.4 + _slow_envelope(num_samples, 1.0, rng))
        case _:
            raise ValueError(f"scene must be one of {', '.join(SCENES)}; got {scene!r}.")
    return np.asarray(noise / np.sqrt(np.mean(np.square(noise))))


def pink_noise(num_samples: int, rng: np.random.Generator) -> np.ndarray:
    """Return noise whose power falls by 10 dB per decade above 20 Hz, RMS 1."""
    frequency = np.fft.rfftfreq(num_samples, 1 / RATE_HZ)
    spectrum = rng.standard_normal(len(frequency)) + 1j * rng.standard_normal(len(frequency))
    noise = np.fft.irfft(spectrum / np.sqrt(np.maximum(frequency, 20)), num_samples)
    return np.asarray(noise / np.sqrt(np.mean(np.square(noise))))


def _band(noise: np.ndarray, low_hz: float, high_hz: float) -> np.ndarray:
    sos = scipy.signal.butter(2, [low_hz, high_hz], "bandpass", fs=RATE_HZ, output="sos")
    return np.asarray(scipy.signal.sosfilt(sos, noise))


def _slow_envelope(num_samples: int, rate_hz: float, rng: np.random.Generator) -> np.ndarray:
    num_points = max(2, int(num_samples / RATE_HZ * rate_hz) + 2)
    points = rng.random(num_points)
    return np.interp(np.linspace(0, num_points - 1, num_samples), np.arange(num_points), points)


def from_distance(song: np.ndarray, metres: float) -> np.ndarray:
    """Return the song as heard from afar: air takes the treble, and loudness falls by 1/metres."""
    cutoff = float(np.clip(16_000 / (1 + metres / 40), 3500, 15_500))
    sos = scipy.signal.butter(1, cutoff, "lowpass", fs=RATE_HZ, output="sos")
    return np.asarray(scipy.signal.sosfilt(sos, song) * min(1.0, 10 / metres))
