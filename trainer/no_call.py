"""Sounds in which nobody calls, made here or recorded, and how often a detector hears somebody in them."""

from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import scipy.signal
import soundfile

from trainer.events import EventFinder, EventRules
from trainer.predict import Predictor
from trainer.recordings import Recording, find_recordings

KINDS = ("white noise", "pink noise", "rain", "wind", "silence")
LEVEL = 0.05  # RMS of what is made


def make_no_call(kind: str, seconds: float, rate_hz: int, seed: int = 0) -> np.ndarray:
    """Return samples (n,) float32 of one of KINDS; none of them is like those of `featurestore synth`.

    rain: drops, each a burst of noise of a few milliseconds in a band of its own, on a hiss.
    wind: brown noise below some hundred hertz, in gusts of seconds.
    """
    rng = np.random.default_rng(seed)
    num = round(seconds * rate_hz)
    match kind:
        case "white noise":
            samples = rng.standard_normal(num)
        case "pink noise":
            samples = _coloured(num, 0.5, rng)
        case "rain":
            samples = _rain(num, rate_hz, rng)
        case "wind":
            low = scipy.signal.butter(2, 500 / (rate_hz / 2), output="sos")
            knots = np.arange(0, num + 2 * rate_hz, 2 * rate_hz)
            gusts = np.interp(np.arange(num), knots, rng.gamma(1.0, 1.0, len(knots)))
            samples = gusts * scipy.signal.sosfilt(low, _coloured(num, 1.0, rng))
        case "silence":
            return np.zeros(num, np.float32)
        case _:
            raise ValueError(f"kind must be one of {', '.join(KINDS)}; got {kind!r}.")
    return np.asarray(LEVEL * samples / np.sqrt(np.mean(np.square(samples))), np.float32)


def _coloured(num: int, exponent: float, rng: np.random.Generator) -> np.ndarray:
    """Return noise whose amplitude falls with frequency ** exponent."""
    spectrum = np.fft.rfft(rng.standard_normal(num))
    frequency = np.maximum(np.fft.rfftfreq(num), 1e-4)
    return np.asarray(np.fft.irfft(spectrum / frequency**exponent, num))


def _rain(num: int, rate_hz: int, rng: np.random.Generator) -> np.ndarray:
    samples = 0.1 * rng.standard_normal(num)
    length = round(0.02 * rate_hz)
    decay = np.exp(-np.arange(length) / (0.003 * rate_hz))
    for start in rng.integers(0, max(1, num - length), round(40 * num / rate_hz)):
        pitch = rng.uniform(0.03, 0.4) * rate_hz
        ring = np.sin(2 * np.pi * pitch * np.arange(length) / rate_hz + rng.uniform(0, 6.28))
        drop = decay * (rng.standard_normal(length) + ring) * rng.gamma(1.0, 1.0)
        samples[start : start + length] += drop[: len(samples) - start]
    return samples


def false_alarms(
    predictor: Predictor, threshold: np.ndarray, recordings: list[Recording], tick: Callable[[int], object]
) -> dict[str, float]:
    """Return events per hour, and the share of segments with a species over its threshold.

    Raises:
        ValueError: nothing of it can be read.
    """
    ensemble = predictor.ensemble
    num_events, num_segments, num_over, seconds = 0, 0, 0, 0.0

    def finder() -> EventFinder:
        return EventFinder(ensemble.taxonomy, threshold, ensemble.frame_seconds, EventRules())

    events = finder()
    with closing(predictor.pieces([one.path for one in recordings])) as pieces:  # type: ignore[type-var]
        for piece in pieces:
            tick(piece.num_windows)
            events.add(piece.first_frame, piece.frames)
            heard = piece.segments[piece.valid_samples > 0]
            num_segments += len(heard)
            num_over += int((heard >= threshold).any(axis=1).sum())
            if piece.finding is not None:
                num_events += len(events.events(piece.duration_seconds))
                seconds += piece.duration_seconds
                events = finder()
    if not seconds:
        raise ValueError(f"none of the {len(recordings)} recordings without a call can be read.")
    return {
        "events_per_hour": num_events / seconds * 3600,
        "segments_over_threshold": num_over / num_segments,
        "hours": seconds / 3600,
    }


def made_recordings(folder: Path, minutes: float, rate_hz: int) -> dict[str, list[Recording]]:
    """Write a recording of every kind into a folder."""
    found = {}
    for kind in KINDS:
        path = folder / f"{kind.replace(' ', '-')}.wav"
        soundfile.write(path, make_no_call(kind, 60 * minutes, rate_hz), rate_hz)
        found[kind] = find_recordings(path)
    return found
