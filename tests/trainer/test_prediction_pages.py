"""Pages of a prediction in a real browser: what they show, how they are reviewed, and what comes out."""

import csv
import io
import shutil
import time
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
from shared.taxonomy import Taxonomy
from trainer.event_tables import RAVEN_COLUMNS
from trainer.events import EventFinder, EventRules
from trainer.soundscape_audio import SoundPages, mel_ticks

Run = Callable[..., Result]
EVIL = """lo"w' <b>&</script><script>window.hacked=1</script>ü"""
NAME = """s'"<b>ü&amp;#%.wav"""


@pytest.fixture(scope="module")
def heard(trained: Path, tmp_path_factory: pytest.TempPathFactory, run_program: Run) -> Path:
    """A run with a species whose name breaks pages, over soundscapes that have such a name too."""
    folder = tmp_path_factory.mktemp("heard")
    run = shutil.copytree(trained / "one", folder / "run")
    species = ["high", EVIL, "middle"]
    pd.DataFrame({"primary_label": species}).to_csv(run / "taxonomy.csv", index=False)
    scapes = folder / "scapes" / "deep"
    scapes.mkdir(parents=True)
    rng = np.random.default_rng(3)
    for name, order in ((NAME, (500, 3000, 500, 1500)), ("other.wav", (1500, 500))):
        samples = np.concatenate([tone(float(hertz), 2.5) for hertz in order])
        soundfile.write(scapes / name, samples + 0.02 * rng.standard_normal(len(samples)), TINY_RATE_HZ)
    (scapes / "broken.wav").write_bytes(b"no audio")
    run_program("trainer", "predict", run, "--audio", folder / "scapes", "--out", folder / "s.csv",
                "--html", folder / "html", "--overlap", "0.5", "--events", "csv", "--events", "raven",
                "--event-join", "0.5", "--event-pad", "0.1")  # fmt: skip
    return folder


@pytest.fixture
def page(heard: Path, browser: Browser) -> Path:
    """The page of the first soundscape, opened in a browser that knows no verdicts."""
    path = heard / "html" / "pages" / "deep" / f"{NAME}.html"
    browser.open(path)
    browser.run("localStorage.clear()")
    browser.open(path)
    return path


def press(browser: Browser, *keys: str) -> None:
    for key in keys:
        browser.run(
            "(document.activeElement ?? document.body).dispatchEvent("
            "new KeyboardEvent('keydown', {key: arguments[0], bubbles: true, cancelable: true}))",
            key,
        )


def written(heard: Path) -> pd.DataFrame:
    events = pd.read_csv(heard / "s.events.csv")
    return events[events["filename"] == f"deep/{NAME}"].reset_index(drop=True)


def download(browser: Browser, button: str) -> str:
    before = set(browser.downloads.glob("*"))
    place = "{behavior: 'instant', block: 'center'}"
    browser.run(f"document.getElementById(arguments[0]).scrollIntoView({place})", button)
    browser.driver.find_element("id", button).click()  # a hand's click: only that may download
    for _ in range(100):
        new = [path for path in set(browser.downloads.glob("*")) - before if path.suffix in (".csv", ".txt")]
        if new:
            text = new[0].read_text(encoding="utf-8")
            new[0].unlink()
            return text
        time.sleep(0.05)
    raise AssertionError("nothing was downloaded")


def test_pages_open_without_an_error_or_a_request_and_names_are_text(
    page: Path, heard: Path, browser: Browser
) -> None:
    for path in (page, heard / "html" / "index.html"):
        browser.opens_clean(path)
        text = browser.run("return document.body.innerText")
        assert EVIL in text
        assert NAME in text
        assert browser.run("return document.querySelectorAll('main li b b, main td b').length") == 0


def test_pages_are_accessible_and_fit_a_phone(page: Path, heard: Path, browser: Browser) -> None:
    for path in (page, heard / "html" / "index.html"):
        browser.is_for_everybody(path)


def test_the_index_leads_to_every_page_and_names_what_has_none(heard: Path, browser: Browser) -> None:
    browser.open(heard / "html" / "index.html")
    links = browser.run("return [...document.querySelectorAll('#recordings-table a')].map(a => a.href)")
    assert len(links) == 2
    for link in links:
        browser.driver.get(link)
        assert browser.run("return document.title").startswith("deep/")
    browser.open(heard / "html" / "index.html")
    assert "libsndfile cannot read it" in browser.run("return document.body.innerText")


def test_detections_are_those_of_the_event_table(page: Path, heard: Path, browser: Browser) -> None:
    table = written(heard)
    shown = browser.run("return scape.events().map(e => [e.start, e.stop, e.confidence])")
    assert len(shown) == len(table) > 3
    assert np.allclose(shown, table[["start", "stop", "confidence"]], atol=6e-4)
    names = browser.run("return [...document.querySelectorAll('#list b')].map(b => b.textContent)")
    assert names == table["species"].tolist()
    occurring = browser.run("return scape.lanes()")
    assert sorted(occurring) == sorted(set(table["species"]))


def test_the_slider_redraws_the_events_and_own_brings_them_back(
    page: Path, heard: Path, browser: Browser
) -> None:
    own = browser.run("return scape.events().length")
    counts = {}
    for threshold in (0.02, 0.9, 0.99):
        browser.run(
            "const s = document.getElementById('threshold'); s.value = arguments[0];"
            "s.dispatchEvent(new Event('input'))",
            threshold,
        )
        counts[threshold] = browser.run("return scape.events().map(e => e.confidence)")
        listed = browser.run("return document.querySelectorAll('#list li').length")
        assert listed == len(counts[threshold])
        assert all(confidence >= threshold for confidence in counts[threshold])
    assert len({len(one) for one in counts.values()}) > 1
    browser.run("document.getElementById('own').click()")
    assert browser.run("return scape.events().length") == own


def test_the_page_finds_the_events_that_the_program_finds_by_any_rule(page: Path, browser: Browser) -> None:
    rng = np.random.default_rng(0)
    script = """
        const [values, classes, rules, seconds, duration, thresholds] = arguments;
        const source = document.getElementById('data');
        const data = JSON.parse(source.textContent);
        const bytes = new Uint8Array(new Float32Array(values).buffer);
        data.frames = btoa(String.fromCharCode(...bytes));
        data.num_frames = values.length / classes;
        [data.rules, data.frame_seconds, data.seconds] = [rules, seconds, duration];
        data.species = thresholds.map((threshold, k) => ({code: 'abc'[k], threshold}));
        data.tiles = [];
        source.textContent = JSON.stringify(data);
        const source2 = [...document.scripts].at(-1).textContent;
        const scape2 = Function(source2 + '; return scape')();
        return scape2.events().map(e => ['abc'[e.column], e.start, e.stop, e.confidence]);
    """
    for join, shortest, pad in (
        (0, 0, 0),
        (0.5, 0, 0),
        (0, 0.6, 0),
        (0.5, 1.0, 0.3),
        (0, 0, 0.6),
        (1.5, 0, 2),
    ):
        frames = rng.random((37, 3)).astype(np.float32)
        thresholds = np.array([0.5, 0.8, 0.3], np.float32)
        rules = EventRules(join=join, shortest=shortest, pad=pad)
        finder = EventFinder(Taxonomy(("a", "b", "c")), thresholds, 0.5, rules)
        finder.add(0, frames)
        expected = [(e.species, e.start, e.stop, e.confidence) for e in finder.events(18.3)]
        found = browser.run(
            script, frames.T.ravel().tolist(), 3, {"join": join, "shortest": shortest, "pad": pad},
            0.5, 18.3, thresholds.tolist(),
        )  # fmt: skip
        assert [one[0] for one in found] == [one[0] for one in expected]
        assert np.allclose([one[1:] for one in found], [one[1:] for one in expected])
        browser.open(page)


def test_a_click_seeks_and_an_event_is_played_to_its_end(page: Path, browser: Browser) -> None:
    browser.wait("document.getElementById('audio').readyState >= 2")
    assert abs(browser.run("return document.getElementById('audio').duration") - 10) < 0.05
    browser.run("""const box = document.getElementById('sound'), r = box.getBoundingClientRect();
        box.dispatchEvent(new MouseEvent('click', {clientX: r.left + 0.6 * r.width, clientY: r.top + 20}))""")
    browser.wait("Math.abs(document.getElementById('audio').currentTime - 6) < 0.1")
    assert browser.run("return document.getElementById('time').textContent").startswith("0:06")
    press(browser, "j", "j", "Enter")
    start, stop = browser.run("const e = scape.events()[1]; return [e.start, e.stop]")
    browser.wait("!document.getElementById('audio').paused")
    browser.wait("document.getElementById('audio').paused")
    assert start <= browser.run("return document.getElementById('audio').currentTime") <= stop + 0.8


def test_the_place_is_moved_by_keys(page: Path, browser: Browser) -> None:
    browser.wait("document.getElementById('audio').readyState >= 2")
    browser.run("document.getElementById('sound').focus()")
    press(browser, "ArrowRight", "ArrowRight", "ArrowRight")
    browser.wait("Math.abs(document.getElementById('audio').currentTime - 1.5) < 0.05")
    assert browser.run("return document.getElementById('sound').getAttribute('aria-valuenow')") == "1.5"
    press(browser, "+")
    view = browser.run("return scape.view()")
    assert view["to"] - view["from"] == pytest.approx(5)
    press(browser, "0")
    assert browser.run("return scape.view()") == {"from": 0, "to": 10}


def test_what_is_accepted_by_keys_is_exported_and_kept(page: Path, heard: Path, browser: Browser) -> None:
    table = written(heard)
    press(browser, "j", "a", "r", "a")  # a verdict goes on to the next
    said = browser.run("return document.querySelector('#review .said').textContent")
    assert "3 reviewed, 2 right" in said
    rows = list(csv.DictReader(io.StringIO(download(browser, "export-csv"))))
    accepted = table.iloc[[0, 2]]
    assert [row["species"] for row in rows] == accepted["species"].tolist()
    assert [row["filename"] for row in rows] == [f"deep/{NAME}"] * 2
    assert np.allclose([float(row["start"]) for row in rows], accepted["start"], atol=6e-4)
    every = list(csv.DictReader(io.StringIO(download(browser, "export-all"))))
    assert [row["verdict"] for row in every] == ["accepted", "rejected", "accepted"]
    raven = list(csv.reader(io.StringIO(download(browser, "export-raven")), delimiter="\t"))
    assert raven[0] == RAVEN_COLUMNS
    assert [row[9] for row in raven[1:]] == accepted["species"].tolist()
    assert {len(row) for row in raven} == {len(RAVEN_COLUMNS)}
    browser.open(page)  # closed and opened again
    verdicts = browser.run("return [...document.querySelectorAll('#list .verdict')].map(v => v.textContent)")
    assert verdicts[:4] == ["accepted", "rejected", "accepted", ""]
    press(browser, "j", "u")
    assert "2 reviewed, 1 right" in browser.run("return document.querySelector('#review .said').textContent")


def test_the_index_counts_and_exports_what_was_reviewed_on_all_pages(
    page: Path, heard: Path, browser: Browser
) -> None:
    press(browser, "j", "a")
    browser.open(heard / "html" / "pages" / "deep" / "other.wav.html")
    press(browser, "j", "a", "r")
    browser.open(heard / "html" / "index.html")
    cells = browser.run("return [...document.querySelectorAll('.reviewed')].map(c => c.textContent)")
    assert sorted(cells) == ["", "1 of 1 right", "1 of 2 right"]
    raven = download(browser, "export-raven").splitlines()
    expected = [line.split("\t") for line in (heard / "s.raven.txt").read_text(encoding="utf-8").splitlines()]
    found = [line.split("\t") for line in raven]
    begins = {(row[9], row[3], row[8]) for row in expected}  # species, time in the table, in the file
    assert len(found) == 3
    assert all((row[9], row[3], row[8]) in begins for row in found)  # times run on as in the written table


def test_precision_is_of_the_reviewed_by_threshold(page: Path, browser: Browser) -> None:
    found = browser.run("""
        const verdicts = [[0.9, 'accepted'], [0.7, 'rejected'], [0.6, 'accepted'], [0.2, 'rejected']]
            .map(([confidence, verdict]) => ({confidence, verdict}));
        return [0, 0.5, 0.65, 0.8, 0.95].map(t => review.precision(verdicts, t))
            .map(p => [p.reviewed, p.right]);
    """)
    assert found == [[4, 2], [3, 2], [2, 1], [1, 1], [0, 0]]


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
    made = {
        path.relative_to(tmp_path / "h" / "pages").as_posix()[:-5]
        for path in (tmp_path / "h").rglob("s*.html")
    }
    assert len(made) == 2
    assert min(counts[name] for name in made) >= counts.drop(list(made)).max()
    assert "4 recordings have none (with fewer detections" in said
    assert "4 recordings have no page here" in (tmp_path / "h" / "index.html").read_text()


def test_pages_that_are_of_the_same_are_not_made_again_and_older_ones_go(
    runs: Path, scapes: Path, run_program: Run, tmp_path: Path
) -> None:
    command = [
        "predict",
        runs / "one",
        "--audio",
        scapes,
        "--out",
        tmp_path / "s.csv",
        "--html",
        tmp_path / "h",
    ]

    def made() -> dict[str, int]:
        run_program("trainer", *command)
        return {path.name: path.stat().st_mtime_ns for path in (tmp_path / "h" / "pages").rglob("*.html")}

    first = made()
    (tmp_path / "h" / "pages" / "s0.wav.html").unlink()  # as a kill leaves it
    again = made()
    assert [name for name in first if again[name] != first[name]] == ["s0.wav.html"]
    (tmp_path / "h" / "pages" / "notes.html").write_text("mine")
    command += ["--html-most", "1", "--threshold", "0.3", "--overwrite"]
    later = made()
    assert len(later) == 2
    assert "notes.html" in later
    assert all(later[name] != again[name] for name in later if name in again)


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
    assert "4 recordings have none (no time is left for them)" in said
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
    import base64

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
