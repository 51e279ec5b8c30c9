import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
from embedding import killed_after, probe_only

from featurestore import build as building
from featurestore import numerics
from shared.audio import ClipDecoder
from shared.engines import TorchEngine
from shared.store import FeatureStore

Run = Callable[..., object]
BuildTiny = Callable[..., Path]


def file_digests(store: Path) -> dict[str, str]:
    files = sorted(path for path in store.rglob("*") if path.is_file())
    return {str(f.relative_to(store)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def change_metadata(data: Path, change: Callable[[pd.DataFrame], pd.DataFrame]) -> None:
    table = pd.read_csv(data / "metadata.csv", keep_default_na=False)
    change(table).to_csv(data / "metadata.csv", index=False)


def test_every_clip_of_every_recording_has_its_row(build_tiny: BuildTiny, tiny_data: Path) -> None:
    store = FeatureStore(build_tiny())
    assert store.waveforms is not None
    assert store.maps.row_shape == (320, 1, 2)
    for number, filename in enumerate(store.recordings["filename"]):
        samples, _ = soundfile.read(tiny_data / "audio" / filename, dtype="float32")
        rows = np.flatnonzero(store.clips["recording"] == number)
        gain = store.clips["gain"].to_numpy()[rows, None]
        clips = store.waveforms.read(rows).astype(np.float32) * gain
        stored = clips.reshape(-1)[: len(samples)]
        assert np.abs(stored - samples[: len(stored)]).max() < 1e-4
    assert (store.recordings["status"] == "ok").all()


def test_maps_come_from_the_stored_int16_samples(build_tiny: BuildTiny, tiny_config: Path) -> None:
    from shared.config import parse_config, read_sections
    from shared.embedder import Embedder
    from shared.features import FeatureConfig
    from trainer.config import TrainConfig

    store = FeatureStore(build_tiny())
    config = parse_config(FeatureConfig, read_sections(tiny_config), foreign=TrainConfig.__dataclass_fields__)
    assert store.waveforms is not None
    rows = np.arange(4)
    maps = Embedder(config, torch.device("cpu")).embed(store.waveforms.read(rows)).maps["blocks.6"]
    assert np.array_equal(maps, store.maps.read(rows))


@pytest.mark.parametrize("batches_before_the_kill", [1, 3, 5])
def test_a_resumed_build_is_the_build(
    build_tiny: BuildTiny, monkeypatch: pytest.MonkeyPatch, batches_before_the_kill: int
) -> None:
    whole = file_digests(build_tiny("whole.zarr"))
    with monkeypatch.context() as patch:
        patch.setattr(
            building.Embedder, "embed", killed_after(building.Embedder.embed, batches_before_the_kill)
        )
        build_tiny("killed.zarr", status=1)
    assert file_digests(build_tiny("killed.zarr")) == whole


def test_corrected_labels_rewrite_the_tables_and_no_feature(build_tiny: BuildTiny, tiny_data: Path) -> None:
    before = file_digests(build_tiny())
    change_metadata(tiny_data, lambda t: t.assign(primary_label=["high", *t["primary_label"][1:]]))
    path = build_tiny()
    after = file_digests(path)
    unchanged = [name for name in before if name.startswith(("maps", "waveforms", "commits"))]
    assert unchanged
    assert all(before[name] == after[name] for name in unchanged)
    assert FeatureStore(path).labels["species"][0] == "high"


def test_new_recordings_are_added_and_no_row_moves(build_tiny: BuildTiny, tiny_data: Path) -> None:
    all_rows = pd.read_csv(tiny_data / "metadata.csv")
    change_metadata(tiny_data, lambda t: t.drop(index=[0, 5]))
    store = FeatureStore(build_tiny())
    old_rows = np.arange(store.num_rows)
    before = store.maps.read(old_rows)
    all_rows.to_csv(tiny_data / "metadata.csv", index=False)
    grown = FeatureStore(build_tiny())
    assert grown.num_rows > store.num_rows
    assert len(grown.recordings) == 12
    pd.testing.assert_frame_equal(grown.clips[: len(old_rows)], store.clips)
    # The last, partly filled shard is computed again in other batches: equal but for last bits.
    difference = grown.maps.read(old_rows).astype(np.float32) - before.astype(np.float32)
    assert np.abs(difference).max() < 0.02 * np.abs(before).max()


def test_changed_audio_is_computed_again(build_tiny: BuildTiny, tiny_data: Path) -> None:
    before = FeatureStore(build_tiny())
    path = tiny_data / "audio" / str(before.recordings["filename"][0])
    samples, rate = soundfile.read(path)
    soundfile.write(path, samples[::-1], rate)
    after = FeatureStore(build_tiny())
    assert after.recordings["sha256"][0] != before.recordings["sha256"][0]
    rows = np.flatnonzero(after.clips["recording"] == 0)
    assert after.waveforms is not None
    restored = after.waveforms.read(rows) * after.clips["gain"].to_numpy()[rows, None]
    assert np.abs(restored.reshape(-1)[:8000] - samples[::-1][:8000]).max() < 1e-3


def test_another_config_is_refused_with_the_differing_keys(
    build_tiny: BuildTiny, tiny_data: Path, tiny_config: Path, run_program: Run
) -> None:
    store = build_tiny()
    before = file_digests(store)
    result = run_program(
        "featurestore", "build", "--config", tiny_config, "--metadata", tiny_data / "metadata.csv",
        "--audio", tiny_data / "audio", "--out", store, "--set", "mel.hop_length=100",
        "--set", "mel.channels=deltas", status=2,
    )  # fmt: skip
    output = result.output  # type: ignore[attr-defined]
    assert "mel.channels: 'repeat' -> 'deltas'" in output
    assert "mel.hop_length: 125 -> 100" in output
    assert file_digests(store) == before


def test_other_numerics_are_refused_for_new_rows_unless_mixing_is_allowed(
    build_tiny: BuildTiny, tiny_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    all_rows = pd.read_csv(tiny_data / "metadata.csv")
    change_metadata(tiny_data, lambda t: t[:9])
    build_tiny()
    monkeypatch.setattr(numerics, "_processor", lambda: "another processor")
    build_tiny()  # nothing to compute: corrected labels may come from any machine
    all_rows.to_csv(tiny_data / "metadata.csv", index=False)
    build_tiny(status=2)
    store = FeatureStore(build_tiny("tiny.zarr", "--allow-mixed"))
    assert [n["processor"] for n in store.attributes["numerics"]][1:] == ["another processor"]


@pytest.mark.parametrize("shards_before_the_kill", [0, 1, 3])
def test_a_killed_rebuild_never_shows_one_recording_under_another(
    build_tiny: BuildTiny, tiny_data: Path, monkeypatch: pytest.MonkeyPatch, shards_before_the_kill: int
) -> None:
    path, whole = build_tiny(), build_tiny("whole.zarr")
    change_metadata(tiny_data, lambda t: t.drop(index=1))
    calls, write_shard = 0, building.StoreWriter.write_shard

    def killed(self: building.StoreWriter, *arguments: Any) -> object:
        nonlocal calls
        calls += 1
        if calls > shards_before_the_kill:
            raise KeyboardInterrupt
        return write_shard(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(building.StoreWriter, "write_shard", killed)
        build_tiny("tiny.zarr", "--prune", status=1)
    with pytest.raises(ValueError, match="unfinished build"):
        FeatureStore(path)
    build_tiny("whole.zarr", "--prune")
    assert file_digests(build_tiny("tiny.zarr", "--prune")) == file_digests(whole)


def test_pruned_rows_are_gone_and_the_others_are_moved_and_not_computed(
    build_tiny: BuildTiny, tiny_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = FeatureStore(build_tiny())
    kept = np.flatnonzero(before.clips["recording"] != 1)
    maps, waveforms = before.maps.read(kept), before.waveforms
    assert waveforms is not None
    samples = waveforms.read(kept)
    change_metadata(tiny_data, lambda t: t.drop(index=1))
    shutil.rmtree(tiny_data / "audio" / "high")  # not needed: nothing is decoded
    (tiny_data / "audio" / "low" / "XC100.wav").unlink()
    monkeypatch.setattr(building.Embedder, "embed", probe_only(building.Embedder.embed))
    after = FeatureStore(build_tiny("tiny.zarr", "--prune"))
    assert len(after.recordings) == 11
    assert after.waveforms is not None
    rows = np.arange(after.num_rows)
    assert np.array_equal(after.maps.read(rows), maps)
    assert np.array_equal(after.waveforms.read(rows), samples)


def test_recordings_gone_from_the_metadata_are_kept_marked_and_not_trained_on(
    build_tiny: BuildTiny, tiny_data: Path
) -> None:
    from shared.taxonomy import Taxonomy
    from trainer.config import LabelConfig
    from trainer.data import ClipData

    before = FeatureStore(build_tiny())
    digests = file_digests(before.path)
    change_metadata(tiny_data, lambda t: t.drop(index=[1, 4]))
    after = FeatureStore(build_tiny())
    assert np.flatnonzero(~after.in_metadata).tolist() == [1, 4]
    pd.testing.assert_frame_equal(after.clips, before.clips)
    pd.testing.assert_frame_equal(after.labels, before.labels)
    changed = [name for name, digest in file_digests(after.path).items() if digests.get(name) != digest]
    assert not [name for name in changed if "/c/" in name and not name.startswith(("tables", "recovery"))]
    data = ClipData(after, Taxonomy(tuple(after.attributes["taxonomy"])), LabelConfig())
    assert not np.isin(data.recording_of_row[data.usable_rows()], [1, 4]).any()


def test_rows_of_audio_that_is_not_there_now_are_kept(build_tiny: BuildTiny, tiny_data: Path) -> None:
    before = FeatureStore(build_tiny())
    shutil.rmtree(tiny_data / "audio" / "high")
    after = FeatureStore(build_tiny())
    pd.testing.assert_frame_equal(after.clips, before.clips)
    assert (after.recordings["status"] == "ok").all()
    assert any("audio of 4 recordings is not there now" in line for line in after.attributes["problems"])


def test_changed_audio_of_another_length_moves_the_others_and_keeps_them(
    build_tiny: BuildTiny, tiny_data: Path
) -> None:
    before = FeatureStore(build_tiny())
    assert before.waveforms is not None
    waveforms = before.waveforms.read(np.arange(2, before.num_rows))
    soundfile.write(tiny_data / "audio" / "low" / "XC100.wav", np.full(8000 * 9, 0.25), 8000)
    after = FeatureStore(build_tiny())
    assert after.num_rows == before.num_rows + 7
    assert after.waveforms is not None
    for store, first in ((before, 2), (after, 9)):
        assert (store.clips["recording"][first:] >= 1).all()
    assert np.array_equal(after.waveforms.read(np.arange(9, after.num_rows)), waveforms)


def test_a_store_without_waveforms_has_the_same_maps(build_tiny: BuildTiny) -> None:
    full, lean = FeatureStore(build_tiny()), FeatureStore(build_tiny("lean.zarr", "--no-waveforms"))
    rows = np.arange(full.num_rows)
    assert lean.waveforms is None
    assert np.array_equal(full.maps.read(rows), lean.maps.read(rows))


def test_no_time_and_no_path_is_in_a_store(build_tiny: BuildTiny, tiny_data: Path) -> None:
    store = build_tiny()
    for path in store.rglob("zarr.json"):
        assert str(tiny_data.parent) not in path.read_text()


def test_bad_recordings_are_named_and_nothing_else_is_lost(
    build_tiny: BuildTiny, tiny_data: Path, tmp_path: Path, run_program: Run
) -> None:
    audio = tiny_data / "audio"
    (tmp_path / "secret.wav").write_bytes((audio / "low" / "XC100.wav").read_bytes())
    (audio / "low" / "empty.wav").write_bytes(b"")
    (audio / "low" / "page.ogg").write_text("<html>" * 100)
    (audio / "low" / "link.wav").symlink_to(tmp_path / "secret.wav")
    soundfile.write(audio / "low" / "stereo.flac", np.random.default_rng(0).random((96_000, 2)) - 0.5, 96_000)
    samples = np.full(4000, 0.1, np.float32)
    samples[7] = np.nan
    soundfile.write(audio / "low" / "nan.wav", samples, 8000, subtype="FLOAT")
    soundfile.write(audio / "low" / "none.wav", np.zeros(0), 8000)
    soundfile.write(audio / "low" / "short.wav", samples[100:1100], 8000)
    names = ["empty.wav", "page.ogg", "link.wav", "stereo.flac", "nan.wav", "none.wav", "short.wav"]
    names = [f"low/{name}" for name in names] + ["../secret.wav", str(tmp_path / "secret.wav"), "gone.ogg"]
    extra = pd.DataFrame({"primary_label": "low", "filename": names, "secondary_labels": "[]"})
    change_metadata(tiny_data, lambda t: pd.concat([t, extra, extra[:1]]).fillna({"rating": 0}))
    store = FeatureStore(build_tiny())
    seen = store.recordings.set_index("filename")
    expected = {
        "low/empty.wav": ("unreadable", "empty"),
        "low/page.ogg": ("unreadable", "cannot read"),
        "low/link.wav": ("unreadable", "leads out"),
        "low/stereo.flac": ("ok", ""),
        "low/nan.wav": ("damaged", "NaN"),
        "low/none.wav": ("unreadable", "no samples"),
        "low/short.wav": ("short", ""),
        "../secret.wav": ("unreadable", "leads out"),
        str(tmp_path / "secret.wav"): ("unreadable", "leads out"),
        "gone.ogg": ("unreadable", "no such file"),
    }
    for name, (status, reason) in expected.items():
        assert seen.loc[name, "status"] == status, name
        assert reason in str(seen.loc[name, "reason"]), name
    assert (seen["status"] == "ok").sum() == 13
    assert any("1 identical rows merged" in line for line in store.attributes["problems"])
    summary = run_program("featurestore", "info", store.path, "--all").output  # type: ignore[attr-defined]
    assert all(name in summary for name in expected if expected[name][0] != "ok")
    build_tiny("tiny.zarr", "--strict", status=1)


def test_a_file_cut_between_plan_and_decoding_is_rows_of_zeros_and_named(
    build_tiny: BuildTiny, tiny_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    victim = tiny_data / "audio" / "low" / "XC100.wav"
    decode = ClipDecoder.__iter__

    def cut(self: ClipDecoder) -> object:
        if self.path == victim:
            victim.unlink(missing_ok=True)
        return decode(self)

    monkeypatch.setattr(ClipDecoder, "__iter__", cut)
    store = FeatureStore(build_tiny())
    number = list(store.recordings["filename"]).index("low/XC100.wav")
    rows = np.flatnonzero(store.clips["recording"] == number)
    assert store.recordings["status"][number] == "unreadable"
    assert not store.clips["valid_samples"].to_numpy()[rows].any()
    assert not store.maps.read(rows).any()


def test_map_values_beyond_float16_are_cut_and_named(
    build_tiny: BuildTiny, tiny_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the first of several batches of one recording: the later ones must not hide it."""
    noise = 0.1 * np.random.default_rng(0).standard_normal(8000 * 7)
    soundfile.write(tiny_data / "audio" / "low" / "XC100.wav", noise, 8000)
    run = TorchEngine.__call__
    calls = 0

    def huge(self: TorchEngine, images: torch.Tensor) -> object:
        nonlocal calls
        calls += 1
        (maps,) = run(self, images)
        if calls == 2:  # the first batch after the embedder's own probe
            maps[0, 0, 0, 0] = 1e6
        return (maps,)

    monkeypatch.setattr(TorchEngine, "__call__", huge)
    store = FeatureStore(build_tiny("tiny.zarr", "--workers", 1))
    maps = store.maps.read(np.arange(store.num_rows))
    assert np.isfinite(maps).all()
    assert maps.max() == np.finfo(np.float16).max
    assert "passed float16's range" in store.recordings["reason"][0]
    assert not any(store.recordings["reason"][1:])


def test_external_recordings_join_by_species_and_new_ids(
    build_tiny: BuildTiny, tiny_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = pd.read_csv(tiny_data / "metadata.csv")
    table[:6].to_csv(tiny_data / "metadata.csv", index=False)
    other = table[4:].copy()
    other.loc[other.index[-1], "primary_label"] = "unknown"
    other.to_csv(tiny_data / "earlier.csv", index=False)
    pair = f"{tiny_data / 'earlier.csv'}={tiny_data / 'audio'}"
    store = FeatureStore(build_tiny("tiny.zarr", "--external", pair))
    assert len(store.recordings) == 6 + 5
    assert sorted(store.recordings["source"].unique()) == ["earlier", "main"]
    assert store.attributes["taxonomy"] == ["high", "low", "middle"]
    assert store.attributes["problems"] == [
        "earlier: 2 recordings have a xeno-canto id that an earlier source has, and are left out: "
        "middle/XC104.wav, high/XC105.wav"
    ]


def test_info_json_is_flat(build_tiny: BuildTiny, run_program: Run) -> None:
    facts = json.loads(run_program("featurestore", "info", build_tiny(), "--json").output)  # type: ignore[attr-defined]
    assert facts["recordings"] == 12
    assert facts["species"] == 3
    assert not any(isinstance(value, dict | list) for value in facts.values())


def test_too_little_room_is_said_before_any_work(
    build_tiny: BuildTiny, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(building.shutil, "disk_usage", lambda _: usage)
    path = build_tiny(status=2)
    assert not path.exists()


def test_room_is_asked_for_what_is_missing_only(
    build_tiny: BuildTiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_tiny()
    monkeypatch.setattr(building.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    build_tiny()
