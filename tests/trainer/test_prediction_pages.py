"""Which pages a prediction makes, keeps and removes, and what they show of long and odd recordings."""

import base64
import io
import os
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile
from browser import Browser
from click.testing import Result
from tones import TINY_RATE_HZ, tone

import trainer.prediction_pages as pages_module
from shared.clips import ClipGrid
from shared.mel import MelConfig
from trainer.soundscape_audio import SoundPages, mel_ticks

Run = Callable[..., Result]


def test_a_long_recording_has_a_page_per_stretch_with_a_detection(
    runs: Path, run_program: Run, tmp_path: Path, browser: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages_module, "STRETCH_SECONDS", 4.0)
    noise = 0.02 * np.random.default_rng(0).standard_normal(TINY_RATE_HZ * 14).astype(np.float32)
    noise[9 * TINY_RATE_HZ : 11 * TINY_RATE_HZ] += tone(3000.0, 2.0)
    (tmp_path / "long").mkdir()
    soundfile.write(tmp_path / "long" / "day.wav", noise, TINY_RATE_HZ)
    command = ["predict", runs / "one", "--audio", tmp_path / "long", "--out", tmp_path / "s.csv"]
    run_program("trainer", *command, "--frames", tmp_path / "f")
    highest = np.sort(np.load(tmp_path / "f" / "day.npy").max(axis=1).astype(float))
    command += ["--html", tmp_path / "h", "--events", "csv", "--overwrite"]
    command += ["--threshold", highest[-3]]  # few frames count
    said = run_program("trainer", *command).output
    events = pd.read_csv(tmp_path / "s.events.csv")
    wanted = {1}
    for start, stop in zip(events["start"], events["stop"], strict=True):
        wanted |= {*range(int(start // 4) + 1, int((stop - 1e-6) // 4) + 2)}
    last = max(wanted)
    assert last > 1
    assert len(wanted) < 4
    names = {path.name for path in (tmp_path / "h" / "pages").iterdir()}
    assert names == {f"day.wav.{number}.html" for number in wanted}
    assert f"{len(wanted)} pages" in said
    browser.open(tmp_path / "h" / "pages" / f"day.wav.{last}.html")
    assert browser.errors() == []
    begin = 4 * (last - 1)
    here = events[(events["start"] < begin + 4) & (events["stop"] > begin)]
    found = browser.run("return scape.events().map(e => e.start)")
    assert found == pytest.approx((here["start"] - begin).clip(0).tolist())
    # The same command makes the pages again without scoring anything.
    assert "1 of them done before" in run_program("trainer", *command).output


def test_pages_are_made_of_the_recordings_with_most_events(
    runs: Path, scapes: Path, run_program: Run, tmp_path: Path
) -> None:
    said = run_program("trainer", "predict", runs / "one", "--audio", scapes, "--out", tmp_path / "s.csv",
                       "--html", tmp_path / "h", "--html-most", "2", "--events", "csv").output  # fmt: skip
    counts = pd.read_csv(tmp_path / "s.events.csv")["filename"].value_counts()
    folder = tmp_path / "h" / "pages"
    made = {path.relative_to(folder).as_posix()[:-5] for path in folder.rglob("*.html")}
    assert len(made) == 2
    assert min(counts[name] for name in made) >= counts.drop(list(made)).max()
    assert "2 pages" in said
    assert "4 are left out (with fewer detections; --html-most)" in said
    assert "4 pages are left out" in (tmp_path / "h" / "index.html").read_text()


def test_pages_that_show_what_is_still_so_stay_and_others_go(
    runs: Path, scapes: Path, run_program: Run, tmp_path: Path
) -> None:
    html = tmp_path / "h"
    command = ["predict", runs / "one", "--audio", scapes, "--out", tmp_path / "s.csv", "--html", html]

    def made(*more: object) -> dict[str, int]:
        run_program("trainer", *command, *more)
        return {path.name: path.stat().st_mtime_ns for path in (html / "pages").rglob("*.html")}

    first = made()
    (html / "pages" / "s0.wav.html").unlink()  # as a kill leaves it
    again = made()
    assert [name for name in first if again[name] != first[name]] == ["s0.wav.html"]
    assert made("--html-most", "1") == again  # what is there costs nothing
    assert (html / "index.html").read_text().count('.html">') == 6
    (html / "pages" / "notes.html").write_text("mine")
    (html / "pages" / "s2.wav.html").write_text("mine too")
    later = made("--html-most", "1", "--threshold", "0.3", "--overwrite")
    assert len(later) == 3
    assert {"notes.html", "s2.wav.html"} < set(later)
    assert (html / "pages" / "s2.wav.html").read_text() == "mine too"


def test_no_page_is_begun_behind_the_end_of_a_budget(
    runs: Path, scapes: Path, tmp_path: Path, run_program: Run
) -> None:
    from trainer.prediction_job import PredictionJob

    calls = []

    def is_over(job: PredictionJob) -> bool:
        calls.append(1)
        return len(calls) > 3  # looked at once before the pages, then before each

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PredictionJob, "time_is_over", is_over)
        said = run_program("trainer", "predict", runs / "one", "--audio", scapes, "--out", tmp_path / "s.csv",
                           "--html", tmp_path / "h").output  # fmt: skip
    assert "2 pages" in said
    assert "4 are left out (no time is left for them)" in said
    assert len(list((tmp_path / "h" / "pages").rglob("*.html"))) == 2


def test_a_recording_without_frames_is_scored_again_for_its_page(
    runs: Path, scapes: Path, run_program: Run, tmp_path: Path
) -> None:
    command = ["predict", runs / "one", "--audio", scapes, "--out", tmp_path / "s.csv"]
    run_program("trainer", *command)
    rows = (tmp_path / "s.csv").read_bytes()
    said = run_program("trainer", *command, "--html", tmp_path / "h").output
    assert "6 pages" in said
    assert "done before" not in said
    assert (tmp_path / "s.csv").read_bytes() == rows


def test_pages_replace_nothing_but_pages(runs: Path, scapes: Path, run_program: Run, tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text("mine")
    said = run_program("trainer", "predict", runs / "one", "--audio", scapes, "--out", tmp_path / "s.csv",
                       "--html", tmp_path, status=2).output  # fmt: skip
    assert "no page of this program" in said
    assert not (tmp_path / "s.csv").exists()


def test_a_chirp_lies_in_the_picture_where_it_lies_in_the_sound(tmp_path: Path) -> None:
    from PIL import Image

    grid = ClipGrid(sample_rate_hz=32_000, clip_samples=160_000, hop_samples=160_000, min_tail_samples=32_000)
    mel = MelConfig()
    samples = 1e-3 * np.random.default_rng(0).standard_normal(32_000 * 12)
    samples[32_000 * 7 : 32_000 * 8] += 0.5 * np.sin(2 * np.pi * 4000 * np.arange(32_000) / 32_000)
    soundfile.write(tmp_path / "x.wav", samples, 32_000)
    number, stretch = next(SoundPages(grid, mel, 600).stretches(tmp_path / "x.wav", {0}))
    assert number == 0
    assert stretch.seconds == pytest.approx(12)
    assert [tile["start"] for tile in stretch.tiles] == [0]
    content = base64.b64decode(stretch.tiles[0]["picture"].partition(",")[2])
    pixels = np.asarray(Image.open(io.BytesIO(content)), float)
    assert pixels.shape == (224, 768)
    row, column = np.unravel_index(pixels.argmax(), pixels.shape)
    assert 7 <= column / 64 <= 8
    height = dict(mel_ticks(mel))["4 kHz"]
    assert abs((1 - row / 224) - height) < 0.02
    bright = np.flatnonzero(pixels[row] > 0.8 * pixels.max())
    assert bright.min() / 64 == pytest.approx(7, abs=0.06)
    assert bright.max() / 64 == pytest.approx(8, abs=0.06)


def test_a_recording_whose_name_is_no_text_is_in_the_index(
    runs: Path, run_program: Run, tmp_path: Path, browser: Browser
) -> None:
    folder = tmp_path / "a"
    folder.mkdir()
    (folder / os.fsdecode(b"for\xeat.wav")).write_bytes(b"no audio")
    soundfile.write(folder / "good.wav", tone(500.0, 3.0), TINY_RATE_HZ)
    run_program("trainer", "predict", runs / "one", "--audio", folder, "--out", tmp_path / "s.csv",
                "--html", tmp_path / "h")  # fmt: skip
    browser.opens_clean(tmp_path / "h" / "index.html")
    text = browser.run("return document.body.innerText")
    assert re.search(r"for.t\.wav", text)
    assert browser.run("return document.querySelectorAll('#recordings-table a').length") == 1
