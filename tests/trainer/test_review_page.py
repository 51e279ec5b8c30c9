"""The pages of a prediction in a real browser: what they show, how they are reviewed, and what comes out."""

import csv
import io
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile
from browser import Browser
from click.testing import Result
from selenium.webdriver.common.keys import Keys
from tones import TINY_RATE_HZ, tone

from shared.taxonomy import Taxonomy
from trainer.event_tables import RAVEN_COLUMNS
from trainer.events import EventFinder, EventRules

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
def page(heard: Path, browser: Browser) -> Iterator[Path]:
    """The page of the first soundscape, in a browser that knows no verdicts; nothing may go wrong in it."""
    path = heard / "html" / "pages" / "deep" / f"{NAME}.html"
    browser.open(path)
    browser.run("localStorage.clear()")
    browser.open(path)
    yield path
    assert browser.errors() == []


def press(browser: Browser, *keys: str) -> None:
    """Press keys as a hand does: where the focus is."""
    for key in keys:
        browser.driver.switch_to.active_element.send_keys(getattr(Keys, key, key))


def reviewed(browser: Browser) -> str:
    return str(browser.run("return document.querySelector('#review .said').textContent"))


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
        const [values, thresholds, rules, shift] = arguments;
        const data = {rules, frame_seconds: 0.5, num_frames: 37, seconds: 18.3, shift};
        return findEvents(data, new Float32Array(values), thresholds.map(Math.fround))
            .map(e => ['abc'[e.column], e.start, e.stop, e.confidence]);
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
            script, frames.T.ravel().tolist(), thresholds.tolist(),
            {"join": join, "shortest": shortest, "pad": pad}, 0,
        )  # fmt: skip
        assert [one[0] for one in found] == [one[0] for one in expected]
        assert np.allclose([one[1:] for one in found], [one[1:] for one in expected])
    # A page that begins within a frame has that frame, and its events begin that much earlier.
    later = browser.run(
        script, frames.T.ravel().tolist(), thresholds.tolist(), {"join": 0, "shortest": 0, "pad": 0}, -0.2
    )
    assert {round(one[1] / 0.5 % 1, 6) for one in later if one[1] > 0} == {0.6}


def test_a_click_seeks_and_an_event_is_played_to_its_end(page: Path, browser: Browser) -> None:
    browser.wait("document.getElementById('audio').readyState >= 2")
    assert abs(browser.run("return document.getElementById('audio').duration") - 10) < 0.05
    browser.run("""const box = document.getElementById('sound'), r = box.getBoundingClientRect();
        box.dispatchEvent(new MouseEvent('click', {clientX: r.left + 0.6 * r.width, clientY: r.top + 20}))""")
    browser.wait("Math.abs(document.getElementById('audio').currentTime - 6) < 0.1")
    assert browser.run("return document.getElementById('time').textContent").startswith("0:06")
    press(browser, "j", "ARROW_DOWN", "ENTER")
    start, stop = browser.run("const e = scape.events()[1]; return [e.start, e.stop]")
    browser.wait("!document.getElementById('audio').paused")
    browser.wait("document.getElementById('audio').paused")
    assert start <= browser.run("return document.getElementById('audio').currentTime") <= stop + 0.8


def test_the_place_is_moved_by_keys(page: Path, browser: Browser) -> None:
    browser.wait("document.getElementById('audio').readyState >= 2")
    browser.run("document.getElementById('sound').focus()")
    press(browser, "ARROW_RIGHT", "ARROW_RIGHT", "ARROW_RIGHT")
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
    said = reviewed(browser)
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
    assert "2 reviewed, 1 right" in reviewed(browser)


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


def test_a_species_is_picked_and_what_is_out_of_view_is_not_listed(page: Path, browser: Browser) -> None:
    listed = "return [...document.querySelectorAll('#list b')].map(b => b.textContent)"
    everything = browser.run(listed)
    browser.run("""const s = document.getElementById('only'); s.selectedIndex = 1;
        s.dispatchEvent(new Event('change'))""")
    some = browser.run(listed)
    assert 0 < len(some) < len(everything)
    assert set(some) == {browser.run("return document.getElementById('only').selectedOptions[0].text")}
    browser.run("""const s = document.getElementById('only'); s.value = '';
        s.dispatchEvent(new Event('change')); document.getElementById('zoom-in').click()""")
    view, events = browser.run("return [scape.view(), scape.events()]")
    inside = [e for e in events if e["stop"] >= view["from"] and e["start"] <= view["to"]]
    assert len(browser.run(listed)) == len(inside) < len(everything)


def test_keys_are_left_to_the_page_outside_the_list_and_the_viewer(page: Path, browser: Browser) -> None:
    press(browser, "j")
    browser.run("document.getElementById('play').focus()")
    press(browser, "a", "r", "j")
    assert "Nothing is reviewed yet." in browser.run(
        "return document.querySelector('#review .said').textContent"
    )
    order = []
    browser.run("document.getElementById('theme').focus()")
    for _ in range(16):
        press(browser, "TAB")
        order.append(browser.run("return document.activeElement.id"))
    wanted = ["play", "zoom-in", "threshold", "sound", "only", "list", "accept", "export-csv"]
    assert [name for name in order if name in wanted] == wanted[: len([n for n in order if n in wanted])]
    assert "list" in order


def test_verdicts_survive_a_browser_that_keeps_nothing(page: Path, browser: Browser) -> None:
    browser.run("Storage.prototype.setItem = () => { throw new Error('full'); }")
    press(browser, "j", "a", "r", "a")
    said = reviewed(browser)
    assert "3 reviewed, 2 right" in said
    assert not browser.run("return document.querySelector('#review .lost').hidden")
    browser.run("addEventListener('beforeunload', (event) => event.stopImmediatePropagation(), true)")


def test_the_index_loads_what_pages_exported(
    page: Path, heard: Path, browser: Browser, tmp_path: Path
) -> None:
    press(browser, "j", "a", "r")
    (tmp_path / "one.csv").write_text(download(browser, "export-all"), encoding="utf-8")
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    browser.run("localStorage.clear()")  # as in a browser that keeps verdicts for each page by itself
    browser.open(heard / "html" / "index.html")
    assert "Nothing is reviewed yet." in browser.run(
        "return document.querySelector('#review .said').textContent"
    )
    field = browser.driver.find_element("id", "load")
    field.send_keys(f"{tmp_path / 'one.csv'}\n{tmp_path / 'other.csv'}")
    browser.wait(
        "document.getElementById('load-said').textContent.startsWith('2 verdicts loaded; 1 files are no')"
    )
    assert "2 reviewed, 1 right" in reviewed(browser)
    browser.open(page)
    verdicts = browser.run("return [...document.querySelectorAll('#list .verdict')].map(v => v.textContent)")
    assert verdicts[:3] == ["accepted", "rejected", ""]


def test_one_loop_follows_the_sound(page: Path, browser: Browser) -> None:
    browser.wait("document.getElementById('audio').readyState >= 2")
    count = browser.driver.execute_async_script("""
        const done = arguments[0], [audio, box] = ['audio', 'sound'].map(id => document.getElementById(id));
        const r = box.getBoundingClientRect();
        const click = () => new MouseEvent('click', {clientX: r.left + 9, clientY: r.top + 9});
        let asked = 0;
        const own = window.requestAnimationFrame;
        audio.play();
        for (let i = 0; i < 12; i++) box.dispatchEvent(click());
        setTimeout(() => {
            window.requestAnimationFrame = (act) => { asked += 1; return own(act); };
            setTimeout(() => { window.requestAnimationFrame = own; audio.pause(); done(asked); }, 500);
        }, 500);
    """)
    assert count < 60  # in half a second, at most 60 a second and some drawing
