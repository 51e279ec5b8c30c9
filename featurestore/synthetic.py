"""A synthetic data set in BirdCLEF layout, with known truth, from a seed."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import soundfile
from tqdm import tqdm

from featurestore.ogg_pages import with_serial_number
from featurestore.synthetic_scenes import SCENES, background, from_distance
from featurestore.synthetic_songs import RATE_HZ, Species, make_species, sing

AUTHORS = tuple(
    f"{initial}. {name}" for name in ("Field", "Marsh", "Wood", "Shore") for initial in "ABCDEFGH"
)
LICENCE = "Creative Commons Zero v1.0 Universal"
FIRST_ID = 9_000_001
SOUNDSCAPE_SECONDS = 120
WRITE_BLOCK = RATE_HZ  # libsndfile's Vorbis encoder overflows its stack on very long writes


@dataclass
class Event:
    """A song somewhere in a recording, in seconds."""

    species: str
    start: float
    stop: float


@dataclass
class Recording:
    """Samples and what sings in them."""

    samples: np.ndarray
    events: list[Event] = field(default_factory=list)

    def add(self, species: Species, at: float, metres: float, rng: np.random.Generator) -> None:
        """Mix in one song that starts `at` seconds; what passes the end is cut."""
        song = from_distance(sing(species, rng), metres)
        first = round(at * RATE_HZ)
        song = song[: len(self.samples) - first]
        if len(song):
            self.samples[first : first + len(song)] += song
            self.events.append(Event(species.code, at, at + len(song) / RATE_HZ))


def write_data_set(out: Path, num_species: int, num_recordings: int, num_soundscapes: int, seed: int) -> str:
    """Write train_audio/, train_metadata.csv, soundscapes/, truth.csv, sample_submission.csv.

    Species are unequally common, n of species i proportional to 1 / (i + 1), at least two each.

    Raises:
        ValueError: fewer than two recordings per species.
    """
    if num_species < 2 or num_recordings < 2 * num_species:
        raise ValueError(
            f"need at least 2 species and 2 recordings each; got {num_species} and {num_recordings}."
        )
    species = [
        make_species(number, np.random.default_rng([seed, 1, number])) for number in range(num_species)
    ]
    order = np.repeat(np.arange(num_species), long_tail(num_species, num_recordings))
    rows = []
    for number, chosen in enumerate(tqdm(order, desc="singing", unit="recording", leave=False)):
        rng = np.random.default_rng([seed, 2, number])
        rows.append(_write_training_recording(out, species, int(chosen), number, rng))
    metadata = pd.DataFrame(rows)
    metadata.to_csv(out / "train_metadata.csv", index=False)
    events = [
        event
        for number in range(num_soundscapes)
        for event in _write_soundscape(out, species, number, np.random.default_rng([seed, 3, number]))
    ]
    pd.DataFrame(events, columns=["filename", "species", "start", "stop"]).to_csv(
        out / "truth.csv", index=False, float_format="%.3f"
    )
    codes = sorted(one.code for one in species)
    sample = pd.DataFrame([[f"synth_{0:03d}_{5 * n}", *[1 / len(codes)] * len(codes)] for n in (1, 2, 3)])
    sample.to_csv(out / "sample_submission.csv", index=False, header=["row_id", *codes])
    return (
        f"{out}: {num_recordings} recordings of {num_species} species, {num_soundscapes} "
        f"soundscapes of {SOUNDSCAPE_SECONDS} s with {len(events)} songs in truth.csv"
    )


def long_tail(num_species: int, num_recordings: int) -> np.ndarray:
    """Return recordings per species: at least two, the rest by 1 / rank, summing up exactly."""
    share = 1 / (1 + np.arange(num_species))
    ideal = share / share.sum() * (num_recordings - 2 * num_species)
    counts = np.floor(ideal).astype(np.int64)
    counts[np.argsort(counts - ideal, kind="stable")[: round(ideal.sum()) - counts.sum()]] += 1
    return np.asarray(counts + 2)


def _write_training_recording(
    out: Path, species: list[Species], chosen: int, number: int, rng: np.random.Generator
) -> dict[str, Any]:
    primary = species[chosen]
    recording, metres = _focal_recording(primary, rng)
    secondary: list[str] = []
    if rng.random() < 0.25:
        other = species[int(rng.choice([n for n in range(len(species)) if n != chosen]))]
        for at in rng.uniform(0, len(recording.samples) / RATE_HZ - 1, rng.integers(1, 4)):
            recording.add(other, float(at), float(rng.uniform(30, 120)), rng)
        secondary = [other.code]
    xc_id = FIRST_ID + number
    filename = f"{primary.code}/XC{xc_id}.ogg"
    write_ogg(out / "train_audio" / filename, recording.samples, rng)
    quality = np.clip(5.5 - metres / 25 - rng.random(), 0.5, 5)
    return {
        "primary_label": primary.code,
        "secondary_labels": str(secondary),
        "type": "['song']",
        "latitude": round(float(rng.uniform(8, 20)), 4),
        "longitude": round(float(rng.uniform(73, 80)), 4),
        "scientific_name": primary.scientific_name,
        "common_name": primary.common_name,
        "author": str(rng.choice(AUTHORS)),
        "license": LICENCE,
        "rating": 0.0 if rng.random() < 0.1 else round(float(quality) * 2) / 2,
        "url": f"https://synthetic.invalid/{xc_id}",
        "filename": filename,
    }


def _focal_recording(primary: Species, rng: np.random.Generator) -> tuple[Recording, float]:
    """Return a recording aimed at one bird: it sings on and off, so that clips may miss it."""
    seconds = float(np.clip(rng.lognormal(2.5, 0.5), 3, 45))
    metres = float(rng.uniform(8, 90))
    loudness_db = rng.uniform(-38, -22)
    scene = str(rng.choice(SCENES))
    noise = background(round(seconds * RATE_HZ), scene, rng)
    recording = Recording(noise * 10 ** (loudness_db / 20))
    at = float(rng.uniform(0, min(2.0, seconds / 4)))
    while at < seconds - 0.3:
        recording.add(primary, at, metres, rng)
        at += float(rng.uniform(1.5, 5.0))
    return recording, metres


def _write_soundscape(
    out: Path, species: list[Species], number: int, rng: np.random.Generator
) -> Iterator[tuple[str, str, float, float]]:
    """Write a soundscape: every species visits for a while, several at once, none aimed at."""
    noise = background(SOUNDSCAPE_SECONDS * RATE_HZ, SCENES[number % len(SCENES)], rng)
    recording = Recording(noise * 10 ** (rng.uniform(-38, -30) / 20))
    for visitor in species:
        for begin in rng.uniform(0, SOUNDSCAPE_SECONDS - 20, rng.integers(1, 3)):
            at, metres = float(begin), float(rng.uniform(15, 90))
            while at < begin + rng.uniform(8, 20):
                recording.add(visitor, at, metres, rng)
                at += float(rng.uniform(2, 6))
    filename = f"synth_{number:03d}.ogg"
    write_ogg(out / "soundscapes" / filename, recording.samples, rng)
    for event in sorted(recording.events, key=lambda one: one.start):
        yield filename, event.species, event.start, event.stop


def write_ogg(path: Path, samples: np.ndarray, rng: np.random.Generator) -> None:
    """Write 32 kHz Vorbis below full scale, the same bytes for the same samples and seed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    peak = max(1.0, float(np.abs(samples).max()) / 0.95)
    scaled = (samples / peak).astype(np.float32)
    with soundfile.SoundFile(
        path, "w", samplerate=RATE_HZ, channels=1, format="OGG", subtype="VORBIS"
    ) as file:
        for first in range(0, len(scaled), WRITE_BLOCK):
            file.write(scaled[first : first + WRITE_BLOCK])
    path.write_bytes(with_serial_number(path.read_bytes(), int(rng.integers(2**31))))
