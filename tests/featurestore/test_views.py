"""Views: what they are, that nothing else changes by them, and that the whole store knows them."""

import hashlib
import importlib
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
import zarr
from embedding import killed_after, probe_only

from featurestore.repair import repair_store
from featurestore.verify import verify_store
from shared.augment import tiled
from shared.augment_policy import AugmentConfig, Policy
from shared.config import parse_config
from shared.embedder import Embedder
from shared.features import FeatureConfig
from shared.store import FeatureStore
from shared.zarr_files import ZarrFiles

BuildTiny = Callable[..., Path]
Run = Callable[..., Any]
CPU = torch.device("cpu")
VIEWS = ("--views", 2)


@pytest.fixture
def refused(tiny_data: Path, tiny_config: Path, run_program: Run) -> Callable[..., str]:
    """What a build of the tiny data set says when it stops with status 2."""

    def build(out: Path, *more: object) -> str:
        result = run_program(
            "featurestore", "build", "--config", tiny_config, "--metadata", tiny_data / "metadata.csv",
            "--audio", tiny_data / "audio", "--out", out, *more, status=2,
        )  # fmt: skip
        return str(result.output)

    return build


def contents(store: Path) -> dict[str, bytes]:
    files = [store] if store.is_file() else sorted(path for path in store.rglob("*") if path.is_file())
    return {path.relative_to(store).as_posix(): path.read_bytes() for path in files}


def causes_of(store: FeatureStore) -> list[str]:
    sha256 = store.recordings["sha256"].to_numpy()[store.clips["recording"].to_numpy()]
    return [f"{audio}/{start}" for audio, start in zip(sha256, store.clips["start"], strict=True)]


def test_a_view_is_what_the_policy_makes_of_the_stored_samples_by_the_clips_own_chance(
    build_tiny: BuildTiny,
) -> None:
    store = FeatureStore(build_tiny("tiny.zarr", *VIEWS, "--set", "views.seed=7"))
    assert store.waveforms is not None
    config = parse_config(FeatureConfig, store.attributes["config"])
    embedder = Embedder(config, CPU)
    policy = Policy(AugmentConfig(), 8000, 8000)
    rows = np.arange(8)  # of the first shard: its batches are these
    clean = torch.from_numpy(store.waveforms.read(rows)).float() / 32768
    clean = tiled(clean, torch.tensor(store.clips["valid_samples"].to_numpy()[rows]))
    for number in (1, 2):
        made = []
        for row, cause in zip(rows, causes_of(store), strict=False):
            seed = hashlib.sha256(f"7/{number}/{cause}".encode()).digest()[:8]
            rng = torch.Generator().manual_seed(int.from_bytes(seed, "little") >> 1)
            made.append(policy(clean[row : row + 1], rng))
        expected = embedder.embed(torch.cat(made)).maps[store.stage]
        assert np.array_equal(store.view(number).read(rows), expected)


def test_views_change_nothing_of_the_clean_store(build_tiny: BuildTiny) -> None:
    plain, viewed = FeatureStore(build_tiny("plain.zarr")), FeatureStore(build_tiny("viewed.zarr", *VIEWS))
    assert (plain.num_views, viewed.num_views) == (0, 2)
    assert plain.fingerprint == viewed.fingerprint
    rows = np.arange(plain.num_rows)
    assert np.array_equal(plain.maps.read(rows), viewed.maps.read(rows))
    first, second = viewed.view(1).read(rows), viewed.view(2).read(rows)
    differs = [
        (one != other).any(axis=(1, 2, 3)).mean()
        for one, other in ((first, second), (first, plain.maps.read(rows)))
    ]
    assert min(differs) > 0.5  # the policy leaves some clips as they are
    assert "views" not in plain.attributes
    pd.testing.assert_frame_equal(plain.clips, viewed.clips)


@pytest.mark.parametrize("calls_before_the_kill", [2, 4, 11])
def test_a_resumed_build_with_views_is_the_build(
    build_tiny: BuildTiny, monkeypatch: pytest.MonkeyPatch, calls_before_the_kill: int
) -> None:
    whole = contents(build_tiny("whole.zarr", *VIEWS))
    with monkeypatch.context() as patch:
        patch.setattr(Embedder, "embed", killed_after(Embedder.embed, calls_before_the_kill))
        build_tiny("killed.zarr", *VIEWS, status=1)
    assert contents(build_tiny("killed.zarr", *VIEWS)) == whole


def test_a_view_is_the_same_wherever_its_row_is(
    build_tiny: BuildTiny, tiny_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every clip's chance is its own: a data set without some recordings has the same views of the rest."""
    whole = FeatureStore(build_tiny("whole.zarr", *VIEWS))
    table = pd.read_csv(tiny_data / "metadata.csv")
    table.drop(index=[0, 5]).to_csv(tiny_data / "metadata.csv", index=False)
    fewer = FeatureStore(build_tiny("fewer.zarr", *VIEWS))
    place = {cause: row for row, cause in enumerate(causes_of(whole))}
    rows = np.array([place[cause] for cause in causes_of(fewer)])
    assert not np.array_equal(rows, np.arange(len(rows)))
    for number in (1, 2):
        found = fewer.view(number).read(np.arange(fewer.num_rows)).astype(np.float32)
        expected = whole.view(number).read(rows).astype(np.float32)
        # Other batches change the last bits of a convolution, and nothing else.
        assert np.abs(found - expected).max() < 0.02 * np.abs(expected).max()
    # In a build that goes on, rows that move are copied, views and all: the same bits.
    before = {number: whole_view(whole, number)[rows] for number in (0, 1, 2)}
    for file in (tiny_data / "audio").rglob("*.wav"):
        file.unlink()
    with monkeypatch.context() as patch:
        patch.setattr(Embedder, "embed", probe_only(Embedder.embed))
        pruned = FeatureStore(build_tiny("whole.zarr", *VIEWS, "--prune"))
    for number in (0, 1, 2):
        assert np.array_equal(whole_view(pruned, number), before[number])


def whole_view(store: FeatureStore, number: int) -> np.ndarray:
    return store.view(number).read(np.arange(store.num_rows)).astype(np.float32)


def test_any_reader_finds_the_views_and_converting_loses_none(
    build_tiny: BuildTiny, tmp_path: Path, run_program: Run
) -> None:
    path = build_tiny("tiny.zarr", *VIEWS)
    store = FeatureStore(path)
    name = f"views/2/{store.stage}"
    expected = store.view(2).read(np.arange(store.num_rows))
    group = zarr.open_group(path, mode="r")
    assert {"1", "2"} == {key for key, _ in group["views"].groups()}
    assert np.array_equal(group[name][:], expected)
    assert group[name].attrs["frame_hop"] == store.frame_hop
    in_one_file, back = tmp_path / "one.h5", tmp_path / "back.zarr"
    run_program("featurestore", "convert", path, in_one_file)
    with h5py.File(in_one_file) as file:
        assert np.array_equal(file[name][:], expected)
    assert np.array_equal(FeatureStore(in_one_file).view(2).read(np.arange(store.num_rows)), expected)
    run_program("featurestore", "convert", in_one_file, back)
    assert contents(back) == contents(path)


def test_embedding_with_views_is_building_with_views(
    build_tiny: BuildTiny, run_program: Run, tmp_path: Path
) -> None:
    built, plain = build_tiny("built.zarr", *VIEWS), build_tiny("plain.zarr")
    out = tmp_path / "embedded.zarr"
    run_program("featurestore", "embed", plain, "--out", out, *VIEWS)  # the config is the source's
    assert contents(out) == contents(built)
    result = run_program("featurestore", "embed", out, "--out", tmp_path / "without.zarr")
    assert "the 2 views" in result.output
    assert contents(tmp_path / "without.zarr") == contents(plain)


@pytest.mark.parametrize("name", ["tiny.zarr", "tiny.h5"])
def test_a_damaged_view_is_named_and_made_again_without_audio(build_tiny: BuildTiny, name: str) -> None:
    path = build_tiny(name, *VIEWS)
    whole = contents(path)
    row = FeatureStore(path).view(1).read(np.array([11]))[0].tobytes()
    file = path if path.is_file() else next((path / "views" / "1").glob("*/c/1/0/0/0"))
    data = bytearray(file.read_bytes())
    data[data.index(row) + 5] ^= 64
    file.write_bytes(data)
    damage = verify_store(path, [])
    assert [found.shard for found in damage] == [1]
    left = repair_store(
        path, [], lambda line: None, weights=None, workers=2, allow_mixed=False, break_lock=False
    )
    assert left == []
    assert contents(path) == whole


@pytest.mark.parametrize(
    ("other", "named"),
    [
        (("--views", 3), "views.count: 2 -> 3"),
        ((), "views.count: 2 -> 'absent'"),
        ((*VIEWS, "--set", "views.seed=1"), "views.seed: 0 -> 1"),
        ((*VIEWS, "--set", 'augment.steps=[{apply = "low_pass"}]'), "views.augment.steps"),
    ],
)
def test_other_views_are_refused_by_name(
    build_tiny: BuildTiny, other: tuple[object, ...], named: str, refused: Callable[..., str]
) -> None:
    path = build_tiny("tiny.zarr", *VIEWS)
    before = contents(path)
    assert named in refused(path, *other)
    assert contents(path) == before


BACKGROUND = 'augment.steps=[{{apply = "background_noise", source = "{}", snr_db = [-20, -20]}}]'


def test_a_recording_of_the_data_set_is_no_background(
    build_tiny: BuildTiny, tiny_data: Path, tmp_path: Path, run_program: Run, refused: Callable[..., str]
) -> None:
    copies = tmp_path / "copies"
    copies.mkdir()
    shutil.copy(tiny_data / "audio" / "low" / "XC100.wav", copies / "noise.wav")
    said = refused(tmp_path / "tiny.zarr", *VIEWS, "--set", BACKGROUND.format(copies))
    assert "1 recordings of this data set (low/XC100.wav first)" in said
    assert not (tmp_path / "tiny.zarr").exists()
    plain = build_tiny("plain.zarr")
    command = ["featurestore", "embed", plain, *VIEWS, "--set", BACKGROUND.format(plain)]
    result = run_program(*command, "--out", tmp_path / "tiny.zarr", status=2)
    assert "12 recordings of this data set" in result.output
    assert not (tmp_path / "tiny.zarr").exists()


def test_backgrounds_of_one_name_are_refused_since_a_store_could_not_tell_them_apart(
    tmp_path: Path, refused: Callable[..., str]
) -> None:
    steps = []
    for number, folder in enumerate((tmp_path / "a" / "rain", tmp_path / "b" / "rain")):
        folder.mkdir(parents=True)
        soundfile.write(folder / "noise.wav", np.random.default_rng(number).normal(0, 0.1, 8000), 8000)
        steps.append(f'{{apply = "background_noise", source = "{folder}"}}')
    assert "the same name" in refused(
        tmp_path / "tiny.zarr", *VIEWS, "--set", f"augment.steps=[{', '.join(steps)}]"
    )


OWN = """
def louder(waveforms, rng):
    return {result}
"""


def test_somebody_elses_transform_makes_views_and_is_bound_to_its_source(
    build_tiny: BuildTiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Callable[..., str]
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    module = tmp_path / "own_views.py"
    own = (*VIEWS, "--set", 'augment.steps=[{apply = "own_views:louder"}]')

    def says(result: str) -> None:
        module.write_text(OWN.format(result=result))
        sys.modules.pop("own_views", None)
        importlib.invalidate_caches()

    for wrong, named in (
        ("waveforms.no_such", "AttributeError"),
        ("waveforms / 0", "not finite"),
        ("waveforms[:, :-1]", "shapes must stay"),
        ("waveforms.numpy()", "shapes must stay"),
    ):
        says(wrong)
        assert named in refused(tmp_path / "tiny.zarr", *own)
        assert not (tmp_path / "tiny.zarr").exists()  # nothing is left behind to be in the way
    says("waveforms.flip(1)")
    store = FeatureStore(build_tiny("tiny.zarr", *own))
    assert (store.view(1).read(np.arange(4)) != store.maps.read(np.arange(4))).any()
    build_tiny("tiny.zarr", *own)
    says("waveforms.flip(1) * 2")
    assert "views.modules" in refused(tmp_path / "tiny.zarr", *own)


def test_backgrounds_are_in_the_views_bound_to_them_and_needed_for_a_repair(
    build_tiny: BuildTiny, tiny_data: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    rain = tmp_path / "rain"
    rain.mkdir()
    shutil.move(tiny_data / "audio" / "low" / "XC100.wav", rain / "noise.wav")
    table = pd.read_csv(tiny_data / "metadata.csv")
    table.drop(index=[0]).to_csv(tiny_data / "metadata.csv", index=False)
    with_rain = (*VIEWS, "--set", BACKGROUND.format(rain))
    path = build_tiny("tiny.zarr", *with_rain)
    whole, store = contents(path), FeatureStore(path)
    assert str(tmp_path) not in (path / "zarr.json").read_text()
    clean, viewed = store.maps.read(np.arange(store.num_rows)), store.view(1).read(np.arange(store.num_rows))
    assert (clean != viewed).any(axis=(1, 2, 3)).all()  # all of them, by much: 20 dB above
    next((path / "views" / "1").glob("*/c/0/0/0/0")).unlink()
    with pytest.raises(ValueError, match="backgrounds from 'rain': name that folder with --audio"):
        repair(path, [])
    repair(path, [rain])
    assert contents(path) == whole
    build_tiny("tiny.zarr", *with_rain)
    assert contents(path) == whole
    samples, rate = soundfile.read(rain / "noise.wav")
    soundfile.write(rain / "noise.wav", samples[::-1], rate)
    assert "views.backgrounds" in refused(path, *with_rain)
    assert contents(path) == whole


def repair(path: Path, audio: list[Path]) -> None:
    left = repair_store(
        path, audio, lambda line: None, weights=None, workers=1, allow_mixed=False, break_lock=False
    )
    assert left == []


def test_a_store_without_waveforms_has_the_same_views(build_tiny: BuildTiny) -> None:
    stores = [
        FeatureStore(build_tiny("a.zarr", *VIEWS)),
        FeatureStore(build_tiny("b.zarr", *VIEWS, "--no-waveforms")),
    ]
    for number in (0, 1, 2):
        assert np.array_equal(*(whole_view(store, number) for store in stores))


def test_info_says_how_many_views(build_tiny: BuildTiny, run_program: Run) -> None:
    path = build_tiny("tiny.zarr", *VIEWS)
    assert '"views": 2' in run_program("featurestore", "info", path, "--json").output
    assert "2 views of every clip" in run_program("featurestore", "info", path).output


def test_all_arrays_together_stay_below_what_may_be_mapped(
    build_tiny: BuildTiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = FeatureStore(build_tiny("tiny.zarr", *VIEWS))  # four arrays of four or five shards
    expected = [whole_view(store, number) for number in (0, 1, 2)]
    monkeypatch.setattr("shared.zarr_files.MAX_MAPPED_IN_ALL", 4)
    few = FeatureStore(store.path)
    arrays = [few.view(number) for number in (0, 1, 2)]
    for row in np.random.default_rng(0).permutation(store.num_rows):
        for array, values in zip(arrays, expected, strict=True):
            assert np.array_equal(array.read(np.array([row]))[0].astype(np.float32), values[row])
    assert isinstance(few.files, ZarrFiles)
    assert few.files.max_mapped() == 1
    with pytest.raises(ValueError, match="1 may be mapped"):
        arrays[0].read(np.array([0, store.num_rows - 1]))
