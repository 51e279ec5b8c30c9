import hashlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from featurestore.ogg_pages import page_crc, with_serial_number
from featurestore.synthetic import long_tail, write_data_set
from featurestore.synthetic_scenes import SCENES, background, pink_noise
from featurestore.synthetic_songs import make_species, sing


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(f.relative_to(folder)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def test_the_same_seed_gives_the_same_bytes_and_another_one_others(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_data_set(tmp_path / name, 3, 8, 1, seed)
    assert digests(tmp_path / "a") == digests(tmp_path / "b")
    one, other = digests(tmp_path / "a"), digests(tmp_path / "c")
    assert not set(one.values()) & {v for k, v in other.items() if k.endswith(".ogg")}


def test_the_layout_is_birdclefs_and_every_file_is_there(tmp_path: Path) -> None:
    write_data_set(tmp_path / "d", 3, 12, 1, 0)
    metadata = pd.read_csv(tmp_path / "d" / "train_metadata.csv")
    columns = ["primary_label", "secondary_labels", "type", "latitude", "longitude",
               "scientific_name", "common_name", "author", "license", "rating", "url",
               "filename"]  # fmt: skip
    assert list(metadata.columns) == columns
    for filename in metadata["filename"]:
        info = soundfile.info(tmp_path / "d" / "train_audio" / filename)
        assert (info.samplerate, info.channels, info.format) == (32_000, 1, "OGG")


def test_the_truth_names_songs_that_can_be_heard(tmp_path: Path) -> None:
    """Somewhere within nearly every event the sound is louder than right before it."""
    write_data_set(tmp_path / "d", 3, 6, 1, 0)
    truth = pd.read_csv(tmp_path / "d" / "truth.csv")
    samples, rate = soundfile.read(tmp_path / "d" / "soundscapes" / "synth_000.ogg")
    assert set(truth["filename"]) == {"synth_000.ogg"}
    assert ((truth["start"] >= 0) & (truth["stop"] <= len(samples) / rate)).all()
    level = np.sqrt(np.convolve(samples**2, np.ones(1600) / 1600, "same"))
    quiet = np.quantile(level, 0.2)
    heard = [
        level[int(event.start * rate) : int(event.stop * rate)].max() > 1.5 * quiet
        for event in truth.itertuples()
    ]
    assert np.mean(heard) > 0.8


@given(st.integers(2, 60), st.integers(0, 500))
def test_the_long_tail_sums_up_and_falls(num_species: int, more: int) -> None:
    counts = long_tail(num_species, 2 * num_species + more)
    assert counts.sum() == 2 * num_species + more
    assert counts.min() >= 2
    assert (np.diff(counts) <= 1).all()


def test_species_differ_and_individuals_vary() -> None:
    one, two = (make_species(n, np.random.default_rng(n)) for n in (0, 5))
    assert one.code != two.code
    assert one.elements != two.elements
    rng = np.random.default_rng(0)
    first, second = sing(one, rng), sing(one, rng)
    assert len(first) != len(second)
    assert np.abs(first).max() == pytest.approx(1)


def test_pink_noise_falls_by_ten_decibels_per_decade() -> None:
    noise = pink_noise(32_000 * 20, np.random.default_rng(0))
    power = np.abs(np.fft.rfft(noise)) ** 2
    frequency = np.fft.rfftfreq(len(noise), 1 / 32_000)
    bands = [(100, 200), (1000, 2000), (8000, 16_000)]
    levels = [10 * np.log10(power[(frequency >= a) & (frequency < b)].mean()) for a, b in bands]
    centres = [np.log10(a) for a, _ in bands]
    assert np.polyfit(centres, levels, 1)[0] == pytest.approx(-10, abs=1)


@pytest.mark.parametrize("scene", SCENES)
def test_backgrounds_have_unit_power(scene: str) -> None:
    noise = background(32_000 * 3, scene, np.random.default_rng(0))
    assert np.sqrt(np.mean(noise**2)) == pytest.approx(1)


def test_a_renumbered_ogg_stream_is_still_valid(tmp_path: Path) -> None:
    path = tmp_path / "x.ogg"
    samples = 0.1 * np.random.default_rng(0).standard_normal(32_000)
    soundfile.write(path, samples, 32_000, format="OGG", subtype="VORBIS")
    before, _ = soundfile.read(path)
    data = path.read_bytes()
    page = bytearray(data[:58])  # the first page of a Vorbis stream: 27 + 1 + 30 bytes
    crc = int.from_bytes(page[22:26], "little")
    page[22:26] = bytes(4)
    assert page_crc(bytes(page)) == crc
    path.write_bytes(with_serial_number(data, 7))
    after, _ = soundfile.read(path)
    assert np.array_equal(before, after)


def test_too_few_recordings_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="2 recordings each; got 8 and 10"):
        write_data_set(tmp_path / "d", 8, 10, 0, 0)
