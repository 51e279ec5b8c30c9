"""Pages: how long each takes to make, how large it is, and how fast a browser redraws it."""

import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from measuring import Numbers, show
from predicts import NUM_SPECIES, write_soundscapes

from shared.taxonomy import read_taxonomy
from trainer.calibration import Calibration, write_calibration

Program = Callable[..., float]
SLIDER = """
const done = arguments[0], slider = document.getElementById("threshold"), found = [];
let value = 0.02;
(function step() {
  const start = performance.now();
  slider.value = value;
  slider.dispatchEvent(new Event("input"));
  const computed = performance.now();
  requestAnimationFrame(() => requestAnimationFrame(() => {
    found.push([computed - start, performance.now() - start, scape.events().length]);
    value += 0.02;
    if (value < 0.98) step(); else done(found);
  }));
})();
"""
MOVING = """
const done = arguments[0], scroll = document.getElementById("scroll"), found = [];
for (let i = 0; i < 3; i++) document.getElementById("zoom-in").click();
let place = 0;
(function step() {
  const start = performance.now();
  scroll.value = place;
  scroll.dispatchEvent(new Event("input"));
  requestAnimationFrame(() => requestAnimationFrame(() => {
    found.push(performance.now() - start);
    place += 3;
    if (found.length < 60) step(); else done(found);
  }));
})();
"""
PLAYING = """
const done = arguments[0], audio = document.getElementById("audio"), found = [];
audio.play();
let last = performance.now();
(function frame() {
  const now = performance.now();
  found.push(now - last);
  last = now;
  if (found.length < 300) requestAnimationFrame(frame); else { audio.pause(); done(found); }
})();
"""


def pages(program: Program, build: Callable[..., Path], write: Callable[[Path, int, float], None]) -> Numbers:
    """Data, run and soundscapes of 4 minutes, 182 species; every one of them occurs on the last."""
    numbers: Numbers = {}
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(folder, 2 * NUM_SPECIES, 10.0)
        lines = (folder / "meta.csv").read_text().splitlines()
        named = [f"{line.rpartition(',')[0]},s{row % NUM_SPECIES:03d}" for row, line in enumerate(lines[1:])]
        (folder / "meta.csv").write_text("\n".join([lines[0], *named]) + "\n")
        store, run = build(folder), folder / "run"
        program("trainer", "fit", "--features", store, "--config", "configs/demo.toml", "--out", run,
                "--set", "fit.epochs=2")  # fmt: skip
        scapes = write_soundscapes(folder / "scapes", 4, 240.0)
        predict = ["trainer", "predict", run, "--audio", scapes, "--overlap", "0.5"]
        _spread(program, predict, run, folder)
        plain = program(*predict, "--out", folder / "plain.csv")
        with_pages = program(*predict, "--out", folder / "s.csv", "--html", folder / "heard")
        again = program(*predict, "--out", folder / "s.csv", "--html", folder / "heard")
        made = sorted((folder / "heard" / "pages").glob("*.html"))
        seconds = {
            "featurestore report": program("featurestore", "report", store, "--out", folder / "data.html"),
            "trainer report": program("trainer", "report", run, "--out", folder / "run.html"),
        }
        sizes = {
            "featurestore report": (folder / "data.html").stat().st_size / 1e6,
            "trainer report": (folder / "run.html").stat().st_size / 1e6,
        }
        for title, key in (("featurestore report", "data"), ("trainer report", "run")):
            rows.append([title, f"{seconds[title]:.1f}", f"{sizes[title]:.2f}"])
            numbers |= {f"pages.{key}_seconds": seconds[title], f"pages.{key}_mb": sizes[title]}
        each, size = (with_pages - plain) / len(made), made[0].stat().st_size / 1e6
        rows.append(["predict --html, per 4 minutes more", f"{each:.1f}", f"{size:.2f}"])
        rows.append(["predict --html, all done before", f"{again:.1f}", ""])
        numbers |= {"pages.soundscape_seconds": each, "pages.soundscape_mb": size}
        numbers["pages.predict_with_over_without"] = with_pages / plain
        show(f"Pages, {NUM_SPECIES} species, {2 * NUM_SPECIES} recordings", ["page", "s", "MB"], rows)
        return numbers | _in_a_browser(made[0], folder)


def _spread(program: Program, predict: list[object], run: Path, folder: Path) -> None:
    """Calibrate a run by hand so that every species crosses half now and then."""
    program(*predict, "--out", folder / "first.csv", "--frames", folder / "frames", "--uncalibrated")
    given = np.load(next((folder / "frames").glob("*.npy"))).astype(np.float64).clip(1e-6, 1 - 1e-6)
    logits = np.log(given / (1 - given))
    slope = 2.0 / (logits.std(axis=0) + 1e-6)
    columns = (slope, -slope * np.median(logits, axis=0) - 1.0, np.full(len(slope), 0.5))
    calibration = Calibration(*(one.astype(np.float32) for one in columns), facts={})
    write_calibration(calibration, read_taxonomy(run / "taxonomy.csv"), run / "calibration.json")


def _in_a_browser(page: Path, folder: Path) -> Numbers:
    sys.path.insert(0, str(Path(__file__).parents[1] / "plugins"))
    from browser import Browser

    browser = Browser(folder)
    try:
        browser.open(page)
        browser.wait("document.getElementById('audio').readyState >= 3")
        num_species = browser.run("return new Set(scape.events().map(e => e.column)).size")
        moved = browser.driver.execute_async_script(SLIDER)
        views = sorted(browser.driver.execute_async_script(MOVING))
        frames = sorted(browser.driver.execute_async_script(PLAYING)[5:])
    finally:
        browser.close()
    computed, painted = (statistics.median(one[column] for one in moved) for column in (0, 1))
    worst = max(one[1] for one in moved)
    most = max(one[2] for one in moved)
    show(
        f"A page in Chromium: {num_species} species with a detection, up to {most} detections",
        ["what", "ms"],
        [
            ["slider moved, events found, median", f"{computed:.1f}"],
            ["slider moved, painted, median", f"{painted:.1f}"],
            ["slider moved, painted, slowest", f"{worst:.1f}"],
            ["view moved, painted, median", f"{statistics.median(views):.1f}"],
            ["view moved, painted, slowest", f"{views[-1]:.1f}"],
            ["between frames while playing, median", f"{statistics.median(frames):.1f}"],
            ["between frames while playing, 95 %", f"{frames[int(0.95 * len(frames))]:.1f}"],
        ],
    )
    return {
        "pages.slider_painted_ms": painted,
        "pages.slider_slowest_ms": worst,
        "pages.view_painted_ms": statistics.median(views),
        "pages.frame_ms_95": frames[int(0.95 * len(frames))],
    }
