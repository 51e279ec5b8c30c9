"""Views in training: which rows are drawn, what they count as, and that scores come from the clean ones."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from shared.store import FeatureStore
from shared.taxonomy import Taxonomy
from trainer.config import LabelConfig
from trainer.data import ClipData
from trainer.map_source import HeldMaps, StoredMaps, ViewedMaps
from trainer.sampling import draw_views

BuildTiny = Callable[..., Path]
Run = Callable[..., Any]
CPU = torch.device("cpu")


@pytest.fixture
def viewed(build_tiny: BuildTiny) -> FeatureStore:
    return FeatureStore(build_tiny("viewed.zarr", "--views", 2))


def test_rows_of_views_are_read_in_any_order(viewed: FeatureStore) -> None:
    maps = ViewedMaps(viewed, 2)
    assert maps.num_rows == 3 * viewed.num_rows
    rows = np.random.default_rng(0).permutation(np.repeat(np.arange(maps.num_rows), 2))
    expected = np.concatenate([viewed.view(number).read(np.arange(viewed.num_rows)) for number in range(3)])
    stored, held = StoredMaps(maps, CPU), HeldMaps(maps, CPU)
    for some in (rows, np.sort(rows), rows[:1], rows[:0], rows[rows >= 2 * viewed.num_rows]):
        assert np.array_equal(stored.read(some).numpy(), expected[some])
        assert np.array_equal(held.read(some).numpy(), expected[some])
    stored.will_need(rows)


def test_every_view_of_every_clip_is_drawn_alike() -> None:
    rows = np.tile(np.arange(10), 3000).reshape(30, 10, 100)
    drawn = draw_views(rows, 3, 10, np.random.default_rng(0))
    assert drawn.shape == rows.shape
    assert (np.diff(drawn // 10, axis=-1) >= 0).all()  # in the order of views within a batch
    counts = np.bincount(drawn.ravel(), minlength=40)
    assert counts.sum() == 30_000
    assert np.bincount(drawn.ravel() % 10).tolist() == [3000] * 10
    chi_square = ((counts - 750) ** 2 / 750).sum()
    assert chi_square < 73  # 0.999 of 40 - 1 degrees of freedom


def test_a_view_has_its_clips_labels_and_no_end(viewed: FeatureStore) -> None:
    taxonomy = Taxonomy(tuple(viewed.attributes["taxonomy"]))
    data = ClipData(viewed, taxonomy, LabelConfig(), StoredMaps(ViewedMaps(viewed, 2), CPU))
    assert data.num_views == 2
    short = np.flatnonzero(viewed.clips["valid_samples"] < 8000)
    rows = np.array([0, short[0]])
    clean, view = data.batch(rows), data.batch(rows + 2 * viewed.num_rows)
    assert torch.equal(clean.targets, view.targets)
    assert torch.equal(clean.weights, view.weights)
    assert not clean.mask[1].all()
    assert view.mask.all()
    assert np.array_equal(view.maps.numpy(), viewed.view(2).read(rows))


def fit(
    run_program: Run, store: FeatureStore, config: Path, name: str, *more: object, status: int = 0
) -> Any:
    out = store.path.parent / name
    command = ("trainer", "fit", "--features", store.path, "--config", config, "--out", out)
    result = run_program(*command, *more, status=status)
    return out if status == 0 else result


def test_a_head_trains_on_the_views_and_is_scored_on_clean_maps(
    viewed: FeatureStore, tiny_config: Path, run_program: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[np.ndarray] = []
    stored = StoredMaps.read

    def noted(self: StoredMaps, rows: np.ndarray) -> object:
        read.append(rows)
        return stored(self, rows)

    monkeypatch.setattr(StoredMaps, "read", noted)
    seen = {}
    for asked in (-1, 1, 0):
        read.clear()
        out = fit(run_program, viewed, tiny_config, f"views{asked}", "--set", f"sampler.views={asked}")
        facts = json.loads((out / "run.json").read_text())
        held_out = [
            rows for rows in read if (rows < viewed.num_rows).all() and len(np.unique(rows)) == len(rows)
        ]
        assert [len(rows) for rows in held_out].count(facts["validation_clips"]) >= 3  # after every epoch
        seen[asked] = ({int(row) // viewed.num_rows for rows in read for row in rows}, facts["views"])
    assert seen == {-1: ({0, 1, 2}, 2), 1: ({0, 1}, 1), 0: ({0}, 0)}


def test_without_views_a_head_is_that_of_a_store_without_views(
    viewed: FeatureStore, build_tiny: BuildTiny, tiny_config: Path, run_program: Run
) -> None:
    plain = FeatureStore(build_tiny("plain.zarr"))
    none = ("--set", "sampler.views=0")
    heads = [fit(run_program, store, tiny_config, name, *none) / "head.safetensors"
             for store, name in ((viewed, "a"), (plain, "b"))]  # fmt: skip
    assert heads[0].read_bytes() == heads[1].read_bytes()
    other = fit(run_program, viewed, tiny_config, "c") / "head.safetensors"
    assert other.read_bytes() != heads[0].read_bytes()


def test_more_views_than_there_are_say_how_to_make_them(
    viewed: FeatureStore, tiny_config: Path, run_program: Run
) -> None:
    result = fit(run_program, viewed, tiny_config, "d", "--set", "sampler.views=3", status=2)
    assert "holds 2" in result.output
    assert "featurestore embed" in result.output
    assert "--views 3" in result.output


def test_a_head_of_views_is_tuned_on_waveforms(
    viewed: FeatureStore, tiny_config: Path, run_program: Run
) -> None:
    head = fit(run_program, viewed, tiny_config, "head")
    out = head.parent / "tuned"
    run_program("trainer", "finetune", "--features", viewed.path, "--init", head, "--out", out,
                "--config", tiny_config, "--set", "finetune.epochs=1")  # fmt: skip
    assert json.loads((out / "run.json").read_text())["views"] == 0
    assert "tuned" in run_program("trainer", "evaluate", head, out).output


def test_a_section_that_is_the_stores_cannot_be_set_for_a_head(
    viewed: FeatureStore, tiny_config: Path, run_program: Run
) -> None:
    result = fit(run_program, viewed, tiny_config, "e", "--set", "views.count=1", status=2)
    assert "sampler.views" in result.output


def test_a_grid_of_more_views_than_there_are_trains_nothing(
    viewed: FeatureStore, tiny_config: Path, run_program: Run
) -> None:
    grid = viewed.path.parent / "grid.toml"
    grid.write_text("[[try]]\nsampler.views = [0, 3]\n")
    result = fit(run_program, viewed, tiny_config, "f", "--folds", 3, "--grid", grid, status=2)
    assert "sampler.views = 3" in result.output
    assert not (viewed.path.parent / "f").exists()
