"""The page of a store: everything that is in it, nothing from elsewhere, and text as text."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from browser import Browser
from click.testing import Result

from featurestore.report import choose_examples
from featurestore.report_data import copies, read_tables, species_of, years
from shared.charts import VARIABLES
from shared.page import refuse_other_file
from shared.store import FeatureStore

Run = Callable[..., Result]
EVIL = """</script><script>window.hacked = 1</script><b>"O'Brien's" & Grünspecht</b> $x$"""


@pytest.fixture
def described(tiny_data: Path) -> Path:
    """The tiny data set with every column that the page looks at, full of names that break pages."""
    table = pd.read_csv(tiny_data / "metadata.csv")
    table["common_name"], table["author"], table["license"] = EVIL, EVIL, [EVIL, "CC0"] * 6
    table["scientific_name"] = "Vox <i>populi</i>"
    table["latitude"], table["longitude"] = np.linspace(-8, 20, 12), np.linspace(70, 80, 12)
    table["date"] = [f"20{10 + number}-05-01" for number in range(12)]
    table["secondary_labels"] = ["['low']"] * 12
    table.loc[0, "rating"] = 0
    new = tiny_data / "audio" / "high" / "XC999 'ä\"<&.wav"
    new.write_bytes(b"no audio")
    odd = {"primary_label": "high", "filename": f"high/{new.name}", "secondary_labels": "[]", "rating": 3}
    pd.concat([table, pd.DataFrame([odd])]).to_csv(tiny_data / "metadata.csv", index=False)
    return tiny_data


@pytest.fixture
def page(described: Path, build_tiny: Callable[..., Path], run_program: Run) -> Path:
    store = build_tiny("tiny.zarr", "--set", "mel.channels=deltas")
    out = described / "data.html"
    run_program("featurestore", "report", store, "--out", out)
    return out


def test_the_page_opens_without_an_error_or_a_request_and_shows_names_as_text(
    page: Path, browser: Browser
) -> None:
    browser.opens_clean(page)
    text = browser.run("return document.body.innerText")
    assert EVIL in text
    assert "XC999 'ä\"<&.wav" in text
    assert browser.run("return document.querySelectorAll('main b, main td i i').length") == 0
    titles = browser.run(
        "return [...document.querySelectorAll('figcaption')].map(f => f.firstChild.textContent)"
    )
    for title in (
        "Recordings per species",
        "How long recordings are",
        "Ratings",
        "Where",
        "Years",
        "Licences",
    ):
        assert title in titles
    assert "Verified: sound." in text
    assert "libsndfile cannot read it" in text


def test_the_page_is_accessible_wide_narrow_light_and_dark(page: Path, browser: Browser) -> None:
    browser.is_for_everybody(page)


def test_clips_have_three_channels_and_a_player_that_seeks(page: Path, browser: Browser) -> None:
    browser.open(page)
    clip = "document.querySelector('figure.clip')"
    tags = browser.run(f"return [...{clip}.querySelectorAll('.tag')].map(t => t.textContent)")
    assert tags == ["log-mel", "first difference", "second difference"]
    assert (
        browser.run(f"return [...{clip}.querySelectorAll('img')].map(i => i.alt.slice(0, 7))")[0] == "log-mel"
    )
    browser.run(
        f"""const box = {clip}.querySelector('.stack'), r = box.getBoundingClientRect();
        box.dispatchEvent(new MouseEvent('click', {{clientX: r.left + r.width / 2, clientY: r.top + 5}}))"""
    )
    browser.wait(f"{clip}.querySelector('audio').currentTime >= 0.45")
    assert browser.wait(f"Math.abs({clip}.querySelector('audio').duration - 1) < 0.06")
    assert browser.wait(f"parseFloat({clip}.querySelector('.stack').style.getPropertyValue('--at')) > 40")


def test_tables_are_sorted_and_filtered(page: Path, browser: Browser) -> None:
    browser.open(page)
    rows = "[...document.querySelectorAll('#species-table tbody tr')]"
    column = f"{rows}.map(r => r.cells[arguments[0]].textContent)"
    before = browser.run(f"return {column}", 0)
    browser.run("document.querySelectorAll('#species-table thead button')[0].click()")
    assert browser.run(f"return {column}", 0) == sorted(before, reverse=True)
    browser.run("document.querySelectorAll('#species-table thead button')[2].click()")
    numbers = [int(text) for text in browser.run(f"return {column}", 2)]
    assert numbers == sorted(numbers, reverse=True)
    browser.run("""const f = document.getElementById('find-card'); f.value = 'LOW';
        f.dispatchEvent(new Event('input'))""")
    assert browser.run("return [...document.querySelectorAll('.card')].filter(c => !c.hidden).length") == 1


def test_counts_are_those_of_the_tables(described: Path, build_tiny: Callable[..., Path]) -> None:
    store = FeatureStore(build_tiny())
    tables = read_tables(store)
    by_code = {one.code: one for one in species_of(tables)}
    assert {code: one.recordings for code, one in by_code.items()} == {"high": 4, "low": 4, "middle": 4}
    assert by_code["middle"].weight == 1
    assert by_code["low"].secondary == 8  # a species that is primary is not secondary too
    assert sum(one.clips for one in by_code.values()) == int((store.clips["valid_samples"] > 0).sum())
    lengths = [2.0 + 0.3 * (number % 5) for number in range(12)]
    assert sum(one.hours for one in by_code.values()) == pytest.approx(sum(lengths) / 3600)
    rated = store.recordings[store.recordings["filename"].str.startswith("low/")]
    assert "0.0" in set(rated["rating"].astype(str))
    assert by_code["low"].rating == 4  # a rating of 0 is none
    assert sorted(set(years(tables.column("date"))) - {""}) == [str(year) for year in range(2010, 2022)]


def test_years_are_read_from_dates_as_people_write_them() -> None:
    given = pd.Series(["2019-05-01", "03/07/2021", "2020_06", "", "nonsense 12345", "1999"])
    assert list(years(given)) == ["2019", "2021", "2020", "", "", "1999"]


def test_copies_are_named_with_their_source() -> None:
    recordings = pd.DataFrame(
        {"source": ["main", "2022.csv", "main"], "filename": ["a.ogg", "b.ogg", "c.ogg"],
         "sha256": ["1", "1", "2"], "xc_id": ["7", "8", "7"]}
    )  # fmt: skip
    assert copies(recordings).rows == [
        ("the same bytes", "a.ogg\nb.ogg (2022.csv)"),
        ("the same xeno-canto id", "a.ogg\nc.ogg"),
    ]


def test_a_limit_costs_all_species_alike(build_tiny: Callable[..., Path]) -> None:
    tables = read_tables(FeatureStore(build_tiny()))
    species = species_of(tables)
    everything = choose_examples(tables, species, 4, 10**9)
    assert everything.num == everything.wanted == 12
    some = choose_examples(tables, species, 4, everything.num_bytes // 2)
    assert some.wanted == 12
    assert 3 <= some.num < 12
    lengths = [len(clips) for clips in some.of.values()]
    assert len(lengths) == 3
    assert max(lengths) - min(lengths) <= 1
    assert some.num_bytes <= everything.num_bytes // 2


def test_pictures_are_written_and_a_page_without_waveforms_says_why(
    build_tiny: Callable[..., Path], run_program: Run, tmp_path: Path
) -> None:
    store = build_tiny("bare.zarr", "--no-waveforms")
    out = tmp_path / "bare.html"
    for _ in range(2):  # a page may be made again
        run_program("featurestore", "report", store, "--out", out, "--quick",
                    "--png", tmp_path / "p", "--svg", tmp_path / "s")  # fmt: skip
    text = out.read_text(encoding="utf-8")
    assert "--no-waveforms" in text
    assert "Not verified" in text
    assert "<audio" not in text
    assert {path.stem for path in (tmp_path / "p").iterdir()} == {
        path.stem for path in (tmp_path / "s").iterdir()
    }
    assert (tmp_path / "p" / "species.png").read_bytes()[:4] == b"\x89PNG"
    assert "var(--" not in (tmp_path / "s" / "species.svg").read_text()
    drawn = re.search(r'<svg style="[^"]*" role="img".*?</svg>', text, re.DOTALL)
    assert drawn is not None
    assert not any(colour in drawn[0] for colour in VARIABLES)  # all follow light and dark


def test_damage_is_shown(build_tiny: Callable[..., Path], run_program: Run, tmp_path: Path) -> None:
    store = build_tiny()
    shard = store / "waveforms" / "c" / "0" / "0"
    blob = bytearray(shard.read_bytes())
    blob[100] ^= 1
    shard.write_bytes(blob)
    run_program("featurestore", "report", store, "--out", tmp_path / "d.html", "--clips", "0")
    text = (tmp_path / "d.html").read_text()
    assert "1 damaged" in text
    assert "damaged rows: 0" in text


def test_a_page_replaces_nothing_but_pages(tmp_path: Path) -> None:
    notes = tmp_path / "notes.html"
    notes.write_text("<html>mine</html>")
    for path, message in ((notes, "no page of this program"), (tmp_path / "x.txt", "must end in .html")):
        with pytest.raises(ValueError, match=message):
            refuse_other_file(path)
    (tmp_path / "d.html").mkdir()
    with pytest.raises(ValueError, match="is a folder"):
        refuse_other_file(tmp_path / "d.html")
