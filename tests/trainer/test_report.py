"""The page of a run: its scores are those of the programs, its mistakes are mistakes, text is text."""

import base64
import gzip
import io
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from browser import Browser
from click.testing import Result
from scipy.special import expit, logit

from shared.charts import shortened
from shared.store import FeatureStore
from shared.taxonomy import Taxonomy
from trainer.calibration import no_calibration
from trainer.compare import compare_sides
from trainer.metrics import resamplings
from trainer.out_of_fold import COLUMNS, OutOfFold, read_out_of_fold
from trainer.report import read_run, species_beside
from trainer.report_map import map_clips
from trainer.report_mistakes import MistakeShower, Wanted, worst
from trainer.report_scores import ClassRow, before_and_after, class_rows, confusions, reliability
from trainer.run import load_run

Run = Callable[..., Result]
EVIL = """lo"w' <b>&</script><script>window.hacked=1</script>ü"""


def table_of(
    logits: np.ndarray, labels: list[list[str]], species: tuple[str, ...] = ("a", "b", "c")
) -> OutOfFold:
    recordings = pd.DataFrame(
        {
            "source": "main", "filename": [f"{n}.ogg" for n in range(len(labels))], "sha256": "",
            "fold": np.arange(len(labels)) % 3, "labels": [json.dumps(one) for one in labels],
            "not_counted": "[]",
        }
    )[COLUMNS]  # fmt: skip
    return OutOfFold(recordings, np.asarray(logits, np.float32), Taxonomy(species))


@pytest.fixture(scope="module")
def evil_runs(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trained runs, with a species and recordings whose names break pages."""
    folder = tmp_path_factory.mktemp("evil") / "runs"
    shutil.copytree(trained, folder)
    for run in (path.parent for path in folder.rglob("run.json")):
        for name in ("taxonomy.csv", "out_of_fold.csv", "split.csv"):
            table = pd.read_csv(run / name, dtype=str, keep_default_na=False)
            for column in {"primary_label"} & {*table.columns}:
                table[column] = table[column].replace("low", EVIL)
            for column in {"labels", "not_counted"} & {*table.columns}:
                table[column] = [
                    json.dumps([EVIL if one == "low" else one for one in json.loads(text)])
                    for text in table[column]
                ]
            table = table.rename(columns={"low": EVIL})
            table.to_csv(run / name, index=False)
    return folder


@pytest.fixture(scope="module")
def page(evil_runs: Path, run_program: Run) -> Path:
    out = evil_runs.parent / "run.html"
    run_program("trainer", "report", evil_runs / "all", evil_runs / "one", evil_runs / "tuned", "--out", out,
                "--mistakes", "3", "--png", out.parent / "png", "--svg", out.parent / "svg")  # fmt: skip
    return out


def test_the_page_opens_without_an_error_or_a_request_and_names_are_text(
    page: Path, browser: Browser
) -> None:
    browser.opens_clean(page)
    assert EVIL in browser.run("return document.body.innerText")
    assert browser.run("return document.querySelectorAll('main b').length") == 0
    assert browser.run("return document.querySelectorAll('article.run').length") == 3


def test_the_page_is_accessible_and_fits_a_phone(page: Path, browser: Browser) -> None:
    browser.is_for_everybody(page)


def test_scores_are_those_of_evaluate_and_compare(
    page: Path, evil_runs: Path, browser: Browser, run_program: Run
) -> None:
    browser.open(page)
    text = browser.run("return document.querySelector('main').innerText")
    said = run_program("trainer", "evaluate", evil_runs / "all", "--json").output
    figures = json.loads(said)
    for key in ("macro_roc_auc", "cmap", "top1"):
        assert f"{figures[key]:.4f} [{figures[f'{key}_low']:.3f}, {figures[f'{key}_high']:.3f}]" in text
    a, b = read_out_of_fold(evil_runs / "all"), read_out_of_fold(evil_runs / "one")
    found = compare_sides([a], [b])[1][0]
    assert f"macro ROC-AUC {found.b - found.a:+.4f} [{found.low:+.4f}, {found.high:+.4f}]" in text


def test_the_split_is_there_with_every_audio_hash(page: Path, evil_runs: Path, browser: Browser) -> None:
    browser.open(page)
    link = browser.run("return document.querySelector('a[download]').href")
    content = gzip.decompress(base64.b64decode(link.partition(",")[2]))
    pd.testing.assert_frame_equal(
        pd.read_csv(io.BytesIO(content), dtype=str), pd.read_csv(evil_runs / "all" / "split.csv", dtype=str)
    )
    assert "sha256" in content.decode().splitlines()[0]


def test_a_species_is_picked_out_on_the_map(page: Path, browser: Browser) -> None:
    browser.open(page)
    browser.run("""const s = document.querySelector('select[data-map]'); s.value = '1';
        s.dispatchEvent(new Event('change'))""")
    faded = browser.run("""const map = document.querySelector('select[data-map]').dataset.map;
        return [...document.querySelectorAll(`g[id^="${map}-species-"]`)]
            .map(g => [g.id, g.classList.contains('faded')])""")
    assert len(faded) == 3
    assert [identity for identity, is_faded in faded if not is_faded] == [
        faded[0][0].rsplit("-", 1)[0] + "-1"
    ]


def test_pictures_are_written_for_every_chart(page: Path) -> None:
    folder = page.parent
    names = {path.stem for path in (folder / "png").iterdir()}
    assert names == {path.stem for path in (folder / "svg").iterdir()}
    assert {"curve-loss", "classes-1", "calibration-1", "map-1", "classes-3"} <= names


def test_intervals_of_classes_are_a_bootstrap_over_recordings() -> None:
    rng = np.random.default_rng(0)
    labels = [["abc"[n % 3]] for n in range(40)]
    table = table_of(rng.normal(0, 1, (40, 3)) + np.eye(3)[np.arange(40) % 3], labels)
    rows = class_rows(table, lambda _: None)
    assert [row.roc_auc for row in rows] == sorted(row.roc_auc for row in rows)
    from sklearn.metrics import average_precision_score, roc_auc_score

    for row in rows:
        column = "abc".index(row.species)
        truth = np.array([row.species in one for one in labels])
        assert row.roc_auc == pytest.approx(roc_auc_score(truth, table.logits[:, column]))
        assert row.average_precision == pytest.approx(average_precision_score(truth, table.logits[:, column]))
        assert row.positives == truth.sum()
        drawn = []
        for weights in resamplings(40):
            if 0 < weights[truth].sum() < 40:
                drawn.append(roc_auc_score(truth, table.logits[:, column], sample_weight=weights))
        assert np.allclose(row.roc_auc_interval, np.quantile(drawn, [0.025, 0.975]), atol=1e-5)


def test_confusions_count_recordings_whose_best_species_is_none_of_theirs() -> None:
    table = table_of(
        [[2, 1, 0], [1, 2, 0], [0, 3, 1], [1, 0, 2], [5, 0, 0]], [["a"], ["a"], ["c"], ["a", "c"], []]
    )
    found = confusions(table)
    assert [(one.true, one.taken_for, one.count, one.examples) for one in found.pairs] == [
        ("a", "b", 1, ("1.ogg",)), ("c", "b", 1, ("2.ogg",)),
    ]  # fmt: skip
    assert (found.judged, found.wrong) == (4, 2)


def test_reliability_is_what_it_says_and_calibration_helps_what_is_overconfident() -> None:
    rng = np.random.default_rng(1)
    truth = rng.random((3000, 3)) < 0.3
    logits = np.where(truth, 1.0, -1.0) + rng.normal(0, 2, truth.shape)
    table = table_of(6 * logits, [[s for s, there in zip("abc", row, strict=True) if there] for row in truth])
    before, after = before_and_after(table)
    assert after is not None
    assert after.error < before.error / 4
    scores = table.scores()
    values = expit(table.logits.astype(float))
    inside = (values >= 3 / 15) & (values < 4 / 15)
    one = reliability(table.logits, scores)
    assert one.count[3] == inside.sum()
    assert one.confidence[3] == pytest.approx(values[inside].mean())
    assert one.frequency[3] == pytest.approx(truth[inside].mean())


def test_the_worst_mistakes_are_over_or_under_the_threshold_each_recording_once() -> None:
    logits = np.array([[3, 2, -4], [-3, 4, -4], [1, -2, -1], [2, 2, 2]])
    labels = [["a"], ["a"], ["a"], ["a", "b", "c"]]
    found = worst(table_of(logits, labels), no_calibration(3), 5)
    assert [(one.row, one.column, one.is_alarm) for one in found] == [
        (1, 1, True),
        (0, 1, True),
        (1, 0, False),
    ]
    assert found[0].probability == pytest.approx(expit(4))
    assert [one.row for one in worst(table_of(logits, labels), no_calibration(3), 1)] == [1, 1]


def test_mistakes_go_by_each_species_own_threshold() -> None:
    logits = logit(np.array([[0.1, 0.90, 0.1], [0.1, 0.1, 0.80], [0.1, 0.1, 0.73], [0.4, 0.1, 0.1]]))
    thresholds = np.array([0.5, 0.95, 0.3], np.float32)
    calibration = replace(no_calibration(3), threshold=thresholds)
    found = worst(table_of(logits, [["a"], ["b"], ["b"], ["a"]]), calibration, 5)
    assert [(one.row, one.column) for one in found if one.is_alarm] == [(1, 2), (2, 2)]
    assert [(one.row, one.column) for one in found if not one.is_alarm] == [(0, 0), (1, 1), (2, 1), (3, 0)]


def test_a_mistakes_curves_are_the_heads_own_and_lie_in_the_clip_where_it_scores_highest(
    runs: Path, store: Path
) -> None:
    import torch

    table = read_out_of_fold(runs / "all")
    opened = FeatureStore(store)
    members = {fold: load_run(runs / "all" / f"fold{fold}") for fold in table.folds}
    show = MistakeShower(members, opened, no_calibration(3), torch.device("cpu"))
    wanted = [*worst(table, no_calibration(3), 3), Wanted(0, 1, True, 0.5)]
    mistakes = show(table, wanted, lambda _: None)
    assert len(mistakes) == len(wanted)
    for one, asked in zip(mistakes, wanted, strict=True):
        recording = table.recordings.iloc[asked.row]
        assert one.filename == recording["filename"]
        number = opened.recordings.index[opened.recordings["filename"] == one.filename][0]
        rows = np.flatnonzero(opened.clips["recording"] == number)
        head = members[int(recording["fold"])].model.eval()
        maps = torch.from_numpy(opened.maps.read(rows).astype(np.float32))
        with torch.inference_mode():
            output = head(maps, torch.ones(len(rows), maps.shape[3], dtype=torch.bool))
        starts = opened.clips["start"].to_numpy()[rows] / 8000
        assert one.start in starts
        valid = opened.clips["valid_samples"].to_numpy()[rows] == 8000
        place = int(np.flatnonzero(starts == one.start)[0])
        if valid[place]:
            expected = expit(output.frame_wise[place, :, asked.column].numpy())
            assert np.allclose(one.curves[0].values, expected, atol=1e-5)
        assert one.curves[0].species == one.species
        assert one.media is not None


def test_the_map_of_a_tuned_network_is_its_own(runs: Path, store: Path) -> None:
    import torch

    opened, device = FeatureStore(store), torch.device("cpu")
    everything = np.ones(len(opened.recordings), bool)
    frozen = map_clips(load_run(runs / "one"), opened, everything, "held-out", device)
    tuned = map_clips(load_run(runs / "tuned"), opened, everything, "held-out", device)
    assert frozen is not None
    assert tuned is not None
    assert (frozen.of, tuned.of) == ("the frozen backbone", "the tuned backbone")
    assert not np.allclose(frozen.places, tuned.places)
    # Clips of one species lie nearer to each other than to others: tones are easily told apart.
    apart = np.linalg.norm(frozen.places[:, None] - frozen.places[None], axis=2)
    same = frozen.species[:, None] == frozen.species[None]
    assert apart[same].mean() < 0.7 * apart[~same].mean()
    assert map_clips(load_run(runs / "one"), opened, ~everything, "held-out", device) is None


def test_what_cannot_be_shown_is_said(runs: Path, run_program: Run, tmp_path: Path) -> None:
    facts = json.loads((runs / "one" / "run.json").read_text())
    facts["features"] = str(tmp_path / "gone.zarr")
    (runs / "one" / "run.json").write_text(json.dumps(facts))
    run_program("trainer", "report", runs / "one", "--out", tmp_path / "a.html")
    text = (tmp_path / "a.html").read_text()
    assert "the run&#39;s store cannot be used" in text
    assert "gone.zarr does not exist" in text
    said = run_program("trainer", "report", runs / "one", "--out", tmp_path / "b.html",
                       "--features", tmp_path / "gone.zarr", status=2).output  # fmt: skip
    assert "gone.zarr does not exist" in said


def test_a_run_without_anything_held_out_has_a_page(
    runs: Path, store: Path, run_program: Run, tmp_path: Path
) -> None:
    run_program("trainer", "fit", "--features", store, "--config", runs / "one" / "config.toml",
                "--out", tmp_path / "all", "--fold", "none", "--set", "fit.epochs=2")  # fmt: skip
    run_program("trainer", "report", tmp_path / "all", "--out", tmp_path / "a.html")
    text = (tmp_path / "a.html").read_text()
    assert "nothing was held out" in text
    assert "map-1" in text
    assert "training clips" in text
    assert "held-out clips" not in text
    assert "No held-out recording" not in text
    assert read_run(tmp_path / "all", 1).table is None


def test_a_recording_that_left_the_metadata_is_no_mistake_to_look_at(runs: Path, store: Path) -> None:
    import torch

    table = read_out_of_fold(runs / "all")
    opened = FeatureStore(store)
    members = {fold: load_run(runs / "all" / f"fold{fold}") for fold in table.folds}
    opened.recordings["in_metadata"] = opened.recordings["filename"] != table.recordings["filename"].iloc[0]
    show = MistakeShower(members, opened, no_calibration(3), torch.device("cpu"))
    found = show(table, [Wanted(0, 1, True, 0.5), Wanted(1, 1, True, 0.5)], lambda _: None)
    assert [one.filename for one in found] == [table.recordings["filename"].iloc[1]]


def test_species_stand_side_by_side_those_that_differ_most_first(runs: Path) -> None:
    one, two = read_run(runs / "all", 1), read_run(runs / "one", 2)
    interval = (0.0, 1.0)
    for run, values in (
        (one, {"a": 0.5, "b": 0.9, "c": float("nan")}),
        (two, {"b": 0.6, "a": 0.55, "d": 0.7}),
    ):
        run.classes = [
            ClassRow(name, value, interval, value, interval, 6, 9) for name, value in values.items()
        ]
    beside = species_beside([one, two])
    assert [(name, [row and row.roc_auc for row in rows]) for name, _, rows in beside] == [
        ("b", [0.9, 0.6]), ("a", [0.5, 0.55]), ("d", [None, 0.7]),
    ]  # fmt: skip


def test_names_of_any_letters_are_drawn_and_text_is_not_rewritten() -> None:
    from shared.charts import COLOURS, Chart, add_legend, inline_svg, new_axes

    figure, axes = new_axes()
    for name in ("$a_$", "_b", "鳥", 'x id="q" #0b6b61'):
        axes.plot([0, 1], label=shortened(name), color=COLOURS[0])
    add_legend(axes)
    svg = inline_svg(Chart("n", "t", "r", 'said id="q" #0b6b61', figure))
    for text in ("$a_$", "_b", "鳥", 'x id="q" #0b6b61'):
        assert f"{text}</text>" in svg
    assert "var(--accent)" in svg


def test_what_is_no_run_is_refused(runs: Path, run_program: Run, tmp_path: Path) -> None:
    out = ["--out", tmp_path / "a.html"]
    for arguments, message in (
        ([tmp_path, *out], "no run folder"),
        ([runs / "one", runs / "one", *out], "named twice"),
        ([runs / "one", "--out", tmp_path / "a.pdf"], "must end in .html"),
        ([runs / "one", *out, "--mistakes", -1], "must not be negative"),
    ):
        assert message in run_program("trainer", "report", *arguments, status=2).output
