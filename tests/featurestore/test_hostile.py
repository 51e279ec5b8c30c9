"""What users, kills and other people's files do to stores: one line with the remedy, and nothing lost."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile

from featurestore import session
from featurestore.verify import verify_store
from shared import recovery
from shared.store import FeatureStore, parts_of
from shared.store_writer import StoreWriter

BuildTiny = Callable[..., Path]
Run = Callable[..., object]


class PowerCutError(BaseException):
    """The machine is gone: nothing catches this."""


def cut_power_at(
    monkeypatch: pytest.MonkeyPatch, target: object, name: str, build: Callable[[], object]
) -> None:
    """Run a build that ends where it calls a function."""

    def cut(*_: object, **__: object) -> None:
        raise PowerCutError

    with monkeypatch.context() as patch:
        patch.setattr(target, name, cut)
        with pytest.raises(PowerCutError):
            build()


def contents(store: Path) -> dict[str, bytes]:
    files = [store] if store.is_file() else [path for path in store.rglob("*") if path.is_file()]
    return {str(path.relative_to(store)): path.read_bytes() for path in files}


def output(result: object) -> str:
    return " ".join(str(result.output).split())  # type: ignore[attr-defined]


def use_first(tiny_data: Path, count: int) -> None:
    """Have the first recordings only in the metadata; all of them are in all.csv."""
    everything = tiny_data / "all.csv"
    if not everything.exists():
        shutil.copy(tiny_data / "metadata.csv", everything)
    table = pd.read_csv(everything, keep_default_na=False)
    table[:count].to_csv(tiny_data / "metadata.csv", index=False)


def test_a_damaged_store_is_not_converted_into_a_sound_one(
    build_tiny: BuildTiny, run_program: Run, tmp_path: Path
) -> None:
    store = build_tiny()
    file = store / "maps" / "blocks.6" / "c" / "1" / "0" / "0" / "0"
    data = bytearray(file.read_bytes())
    data[700] ^= 1
    file.write_bytes(data)
    result = run_program("featurestore", "convert", store, tmp_path / "x.h5", status=2)
    assert "shard 1 of maps/blocks.6 does not match its checksum; bring it back with" in output(result)
    assert not list(tmp_path.glob("*x.h5*"))


def test_embed_does_not_write_over_a_store_of_other_rows(
    build_tiny: BuildTiny, tiny_data: Path, tiny_config: Path, run_program: Run
) -> None:
    source = build_tiny("source.zarr")
    soundfile.write(tiny_data / "audio" / "low" / "XC100.wav", np.zeros(30_000), 8000)
    other = build_tiny("other.zarr")
    before = contents(other)
    result = run_program(
        "featurestore", "embed", source, "--out", other, "--config", tiny_config, status=2
    )  # fmt: skip
    assert "holds other rows than" in output(result)
    assert contents(other) == before


def test_parts_left_from_another_file_are_not_taken_for_this_one(
    build_tiny: BuildTiny, tiny_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_first(tiny_data, 4)
    few = build_tiny("tiny.h5")
    use_first(tiny_data, 8)

    cut_power_at(monkeypatch, session, "finish_container", lambda: build_tiny("tiny.h5"))
    assert parts_of(few).exists()
    use_first(tiny_data, 12)
    shutil.copy(build_tiny("all.h5"), few)
    use_first(tiny_data, 8)
    build_tiny("tiny.h5")
    store = FeatureStore(few)
    assert len(store.recordings) == 12
    assert store.in_metadata.sum() == 8


def test_a_refused_build_unpacks_nothing(build_tiny: BuildTiny) -> None:
    store = build_tiny("tiny.h5")
    before = store.read_bytes()
    build_tiny("tiny.h5", "--set", "mel.num_mels=40", status=2)
    assert not parts_of(store).exists()
    assert store.read_bytes() == before


def test_a_folder_of_the_users_is_not_taken_for_parts(build_tiny: BuildTiny, tmp_path: Path) -> None:
    (tmp_path / "tiny.h5.parts").mkdir()
    (tmp_path / "tiny.h5.parts" / "mine.txt").write_text("keep")
    build_tiny("tiny.h5", status=2)
    assert (tmp_path / "tiny.h5.parts" / "mine.txt").read_text() == "keep"


@pytest.mark.parametrize("name", ["../outside", "/tmp/outside", "a/../../outside"])
def test_a_recovery_copy_that_leads_out_of_the_store_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="names a file outside the store"):
        recovery.unpack(recovery.pack({name: b"x"}))


def test_a_store_whose_growth_was_killed_is_sound_for_its_readers(
    build_tiny: BuildTiny, tiny_data: Path, run_program: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    use_first(tiny_data, 5)
    store = build_tiny()
    num_rows = FeatureStore(store).num_rows
    use_first(tiny_data, 12)
    cut_power_at(monkeypatch, StoreWriter, "publish", build_tiny)
    assert FeatureStore(store).num_rows == num_rows
    assert verify_store(store, []) == []
    result = run_program("featurestore", "convert", store, tmp_path / "x.h5", status=2)
    assert "unfinished build; finish it" in output(result)
    build_tiny()
    assert len(FeatureStore(store).recordings) == 12


def test_a_kill_between_a_shard_and_its_commit_is_made_good_when_the_store_is_opened(
    build_tiny: BuildTiny, tiny_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even where the audio of the shard's rows is gone by then."""
    use_first(tiny_data, 5)
    store = build_tiny()
    rows = np.arange(FeatureStore(store).num_rows)
    before = FeatureStore(store).maps.read(rows)
    use_first(tiny_data, 12)
    cut_power_at(monkeypatch, StoreWriter, "_finish_commit", build_tiny)
    moved = next(path for path in (store / ".tmp").iterdir() if path.name == "waveforms")
    moved.replace(store / "waveforms" / "c" / "1" / "0")  # and half done by then
    assert [found.detail for found in verify_store(store, [])] == [
        "an unfinished build: run the same `featurestore build` again"
    ]
    shutil.rmtree(tiny_data / "audio" / "high")
    build_tiny()
    assert np.array_equal(FeatureStore(store).maps.read(rows), before)
    assert verify_store(store, []) == []


@pytest.mark.parametrize("commits", [1, 2, 3])
def test_rows_that_move_from_shard_to_shard_survive_a_kill_in_between_without_their_audio(
    build_tiny: BuildTiny, tiny_data: Path, monkeypatch: pytest.MonkeyPatch, commits: int
) -> None:
    store = build_tiny()
    shutil.copytree(store, store.with_name("whole.zarr"))
    rng = np.random.default_rng(0)
    soundfile.write(tiny_data / "audio" / "low" / "XC100.wav", 0.1 * rng.standard_normal(24_000), 8000)
    for name in ("middle/XC101.wav", "low/XC103.wav", "middle/XC107.wav", "high/XC108.wav"):
        (tiny_data / "audio" / name).unlink()
    whole = build_tiny("whole.zarr")
    commit, done = StoreWriter.commit, []

    def cut_behind(self: StoreWriter, *arguments: object) -> None:
        commit(self, *arguments)  # type: ignore[arg-type]
        done.append(arguments[0])
        if len(done) == commits:
            raise PowerCutError

    with monkeypatch.context() as patch:
        patch.setattr(StoreWriter, "commit", cut_behind)
        with pytest.raises(PowerCutError):
            build_tiny()
    assert contents(build_tiny()) == contents(whole)


def test_an_hdf5_store_that_lost_its_last_byte_is_brought_back(
    build_tiny: BuildTiny, tiny_data: Path, run_program: Run
) -> None:
    store = build_tiny("tiny.h5")
    before = store.read_bytes()
    store.write_bytes(before[:-1])
    run_program("featurestore", "verify", store, status=1)
    run_program("featurestore", "repair", store, "--audio", tiny_data / "audio")
    assert store.read_bytes() == before


def test_verify_with_audio_names_a_damaged_table_and_does_not_read_it(
    build_tiny: BuildTiny, tiny_data: Path, run_program: Run
) -> None:
    store = build_tiny()
    table = next((store / "tables").glob("*/recordings/filename/zarr.json"))
    table.write_text("{}")
    result = run_program("featurestore", "verify", store, "--audio", tiny_data / "audio", status=1)
    assert f"{table.relative_to(store)}: does not match its checksum" in output(result)
    assert "repair" in output(run_program("featurestore", "info", store, status=2))


def test_what_is_no_store_is_not_called_damaged(run_program: Run, tiny_data: Path) -> None:
    for path in (tiny_data, tiny_data / "metadata.csv"):
        assert "is not a feature store" in output(run_program("featurestore", "verify", path, status=2))


def test_an_unfinished_hdf5_store_says_so(
    build_tiny: BuildTiny, run_program: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cut_power_at(monkeypatch, StoreWriter, "publish", lambda: build_tiny("tiny.h5"))
    store = tmp_path / "tiny.h5"
    assert "an unfinished build" in output(run_program("featurestore", "repair", store, status=2))
    assert "unfinished build" in output(
        run_program("featurestore", "convert", store, tmp_path / "x.zarr", status=2)
    )
    build_tiny("tiny.h5")
    assert verify_store(store, []) == []


def test_a_store_has_one_lock_by_whatever_name(build_tiny: BuildTiny, tmp_path: Path) -> None:
    from shared.lock import locked

    store = build_tiny()
    (tmp_path / "link.zarr").symlink_to(store)
    with locked(store), pytest.raises(ValueError, match="is being worked on"), locked(tmp_path / "link.zarr"):
        pass


def test_damage_inside_the_database_of_seen_files_costs_reading_them_again(
    build_tiny: BuildTiny, tmp_path: Path
) -> None:
    build_tiny()
    database = tmp_path / ".tiny.zarr.seen"
    data = bytearray(database.read_bytes())
    data[100:] = b"\xff" * (len(data) - 100)
    database.write_bytes(data)
    build_tiny()


def test_the_stage_that_bounds_is_the_one_whose_threads_wait_least() -> None:
    from featurestore.summary import stage_table
    from shared.stage_clock import StageClock

    clock = StageClock()
    for stage, seconds in {"decode": 12.0, "log-mel": 2.0, "backbone": 3.0, "write": 9.0}.items():
        clock.add(stage, seconds)
    text = stage_table(clock, 100, 10.0, {"decode": 4, "embed": 1, "write": 1})
    assert "100 clips in 10.0 s, 10.0 clips/s with 4 workers; write bounds" in text
    assert "decode      12.0       120.00   46 %" in text
