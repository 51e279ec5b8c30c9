import hashlib
import json
import pickle
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.audio import Finding
from shared.clip_array import ReadsSlowly
from shared.commit import Commit
from shared.shards import ShardWriter, damaged_rows, digest_of_rows, row_offsets
from shared.store import FeatureStore, read_attributes
from shared.store_writer import ArraySpec, StoreWriter
from shared.tables import read_tables, tables_digest, write_tables
from shared.zarr_files import ZarrFiles

SPECS = {
    "maps/blocks.6": ArraySpec((4, 2, 3), "float16", {"frame_hop": 16_000}),
    "waveforms": ArraySpec((50,), "int16", {}),
}
SHARD_CLIPS = 8


def rows(num_rows: int, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "maps/blocks.6": rng.standard_normal((num_rows, 4, 2, 3)).astype(np.float16),
        "waveforms": rng.integers(-32767, 32768, (num_rows, 50)).astype(np.int16),
    }


def tables(num_rows: int) -> dict[str, pd.DataFrame]:
    clips = {"recording": np.zeros(num_rows, np.int64), "start": np.arange(num_rows),
             "valid_samples": np.full(num_rows, 50), "gain": np.ones(num_rows, np.float32)}  # fmt: skip
    recordings = {
        "filename": ["\N{LATIN SMALL LETTER U WITH DIAERESIS}.ogg"],
        "sha256": ["a"],
        "in_metadata": [True],
    }
    labels = {"recording": [0], "species": ["a"], "start": [-1]}
    return {
        "clips": pd.DataFrame(clips),
        "recordings": pd.DataFrame(recordings),
        "labels": pd.DataFrame(labels),
    }


def write_store(path: Path, num_rows: int) -> dict[str, np.ndarray]:
    data = rows(num_rows)
    writer = StoreWriter(path, {"stages": ["blocks.6"], "fingerprint": "f"}, SPECS, SHARD_CLIPS)
    for shard in range(-(-num_rows // SHARD_CLIPS)):
        part = slice(shard * SHARD_CLIPS, min((shard + 1) * SHARD_CLIPS, num_rows))
        files = writer.write_shard(shard, iter([{name: v[part] for name, v in data.items()}]))
        count = part.stop - part.start
        writer.commit(
            shard,
            Commit(
                (part.start, part.stop),
                (("a", part.start, count),),
                files,
                [1.0] * count,
                [50] * count,
                {"a": Finding("ok", ("x",))},
            ),
        )
    writer.publish(tables(num_rows))
    return data


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 30), st.integers(0, 10_000))
def test_what_is_read_is_what_was_written_in_any_order(num_rows: int, seed: int) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        data = write_store(Path(folder) / "s.zarr", num_rows)
        store = FeatureStore(Path(folder) / "s.zarr")
        asked = np.random.default_rng(seed).integers(0, num_rows, 40)
        assert np.array_equal(store.maps.read(asked), data["maps/blocks.6"][asked])
        assert store.waveforms is not None
        out = np.empty((40, 50), np.int16)
        assert store.waveforms.read(asked, out) is out
        assert np.array_equal(out, data["waveforms"][asked])


def test_zarr_python_reads_the_same_without_our_code(tmp_path: Path) -> None:
    data = write_store(tmp_path / "s.zarr", 19)
    group = zarr.open_group(tmp_path / "s.zarr", mode="r")
    for name, values in data.items():
        array = group[name]
        assert isinstance(array, zarr.Array)
        assert array.shape == values.shape
        assert array.dtype == values.dtype
        assert np.array_equal(np.asarray(array[:]), values)
    assert group["maps/blocks.6"].attrs["frame_hop"] == 16_000
    assert group["commits/00000001"].attrs["rows"] == [8, 16]


def foreign_array(path: Path, values: np.ndarray, **options: object) -> ZarrFiles:
    """Put an array that zarr-python wrote, in its own layout, in a store's place."""
    settings: dict[str, object] = {
        "chunks": (1, *values.shape[1:]), "shards": (SHARD_CLIPS, *values.shape[1:]),
        "compressors": [zarr.codecs.Crc32cCodec()], **options,
    }  # fmt: skip
    array = zarr.create_array(
        path / "waveforms",
        shape=values.shape,
        dtype=values.dtype,
        fill_value=0,
        **settings,  # type: ignore
    )
    array[:] = values
    return ZarrFiles(path)


def test_a_shard_that_zarr_python_wrote_is_mapped_too_with_absent_chunks_as_zeros(tmp_path: Path) -> None:
    values = rows(8)["waveforms"]
    values[3] = 0
    array = foreign_array(tmp_path, values).array("waveforms", 8)
    order = np.array([7, 3, 0, 1, 2, 4, 5, 6])
    assert np.array_equal(array.read(order), values[order])
    assert array.is_mapped


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"compressors": zarr.codecs.ZstdCodec()}, "chunks are stored as bytes, zstd"),
        ({"shards": None}, "codecs are bytes, crc32c, not sharding_indexed"),
        ({"chunks": (2, 50)}, "chunks are .2, 50., not one row each"),
    ],
)
def test_other_layouts_are_read_by_the_ordinary_library_which_is_said_once(
    tmp_path: Path, options: dict[str, object], reason: str
) -> None:
    values = rows(16)["waveforms"]
    array = foreign_array(tmp_path, values, **options).array("waveforms", 16)
    asked = np.array([9, 9, 2, 15, 0])
    with pytest.warns(ReadsSlowly, match=reason):
        assert np.array_equal(array.read(asked), values[asked])
    assert np.array_equal(array.read(asked[:2]), values[asked[:2]])  # a warning would be an error here
    array.will_need(asked)
    assert not array.is_mapped


def test_a_shard_with_a_damaged_index_is_refused(tmp_path: Path) -> None:
    write_store(tmp_path / "s.zarr", 12)
    file = tmp_path / "s.zarr" / "waveforms" / "c" / "1" / "0"
    data = bytearray(file.read_bytes())
    data[-10] ^= 1
    file.write_bytes(data)
    store = FeatureStore(tmp_path / "s.zarr")
    assert store.waveforms is not None
    store.waveforms.read(np.array([0, 7]))
    with pytest.raises(ValueError, match="does not match its checksum; `featurestore verify`"):
        store.waveforms.read(np.array([8]))


def test_the_digest_of_rows_is_that_of_the_file_they_make(tmp_path: Path) -> None:
    values = rows(7)["waveforms"]
    with ShardWriter(tmp_path / "s", shard_clips=SHARD_CLIPS, row_bytes=100) as writer:
        writer.append(values[:3])
        writer.append(values[3:])
        digest = writer.finish()
    data = (tmp_path / "s").read_bytes()
    assert digest.num_bytes == len(data)
    assert digest.sha256 == hashlib.sha256(data).hexdigest()
    assert digest_of_rows([values], SHARD_CLIPS) == digest


def test_damaged_rows_are_found_by_their_checksums(tmp_path: Path) -> None:
    values = rows(7)["waveforms"]
    with ShardWriter(tmp_path / "s", shard_clips=SHARD_CLIPS, row_bytes=100) as writer:
        writer.append(values)
        writer.finish()
    data = np.fromfile(tmp_path / "s", np.uint8)
    offsets = row_offsets(data, SHARD_CLIPS, 100)
    assert (offsets >= 0).tolist() == [True] * 7 + [False]
    for row in (2, 6):
        data[offsets[row] + 50] ^= 4
    assert damaged_rows(data, SHARD_CLIPS, 100, 7) == [2, 6]


def test_rows_outside_the_store_are_refused(tmp_path: Path) -> None:
    write_store(tmp_path / "s.zarr", 5)
    store = FeatureStore(tmp_path / "s.zarr")
    for row in (5, -1):
        with pytest.raises(IndexError, match=r"has rows 0\.\.4"):
            store.maps.read(np.array([row]))


def test_tables_come_back_with_their_types_and_unicode(tmp_path: Path) -> None:
    write_store(tmp_path / "s.zarr", 3)
    store = FeatureStore(tmp_path / "s.zarr")
    assert store.clips["gain"].dtype == np.float32
    assert list(store.recordings["filename"]) == ["\N{LATIN SMALL LETTER U WITH DIAERESIS}.ogg"]
    assert list(store.labels["start"]) == [-1]


def test_an_empty_table_is_still_a_table(tmp_path: Path) -> None:
    empty = pd.DataFrame({"species": np.zeros(0, dtype=object), "start": np.zeros(0, np.int64)})
    write_tables(tmp_path / "t", {"labels": empty})
    assert list(read_tables(tmp_path / "t")["labels"].columns) == ["species", "start"]


def test_every_value_of_a_table_changes_its_digest() -> None:
    base = tables(4)
    digests = {tables_digest(base)}
    for name, table in base.items():
        for column in table.columns:
            changed = table.copy()
            kind = table[column].dtype.kind
            changed.loc[0, column] = 7 if kind in "iuf" else (False if kind == "b" else "other")
            digests.add(tables_digest(base | {name: changed}))
    assert len(digests) == 1 + sum(len(table.columns) for table in base.values())


def test_nothing_is_visible_before_it_is_published(tmp_path: Path) -> None:
    writer = StoreWriter(tmp_path / "s.zarr", {"stages": ["blocks.6"]}, SPECS, SHARD_CLIPS)
    writer.write_shard(0, iter([rows(8)]))
    assert writer.commit_of(0) is None
    with pytest.raises(ValueError, match="unfinished build.*build` again"):
        FeatureStore(tmp_path / "s.zarr")


def test_a_failing_shard_leaves_no_file_and_no_commit(tmp_path: Path) -> None:
    writer = StoreWriter(tmp_path / "s.zarr", {"stages": ["blocks.6"]}, SPECS, SHARD_CLIPS)

    def broken() -> Iterator[dict[str, np.ndarray]]:
        yield rows(4)
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        writer.write_shard(0, broken())
    assert not list((tmp_path / "s.zarr" / "waveforms").rglob("c/*"))
    assert writer.commit_of(0) is None


def test_a_commit_whose_file_is_gone_does_not_count(tmp_path: Path) -> None:
    write_store(tmp_path / "s.zarr", 12)
    writer = StoreWriter(tmp_path / "s.zarr", {}, SPECS, SHARD_CLIPS)
    assert writer.commit_of(1) is not None
    (tmp_path / "s.zarr" / "waveforms" / "c" / "1" / "0").unlink()
    assert writer.commit_of(1) is None


def test_another_format_version_is_refused_with_the_remedy(tmp_path: Path) -> None:
    write_store(tmp_path / "s.zarr", 3)
    root = tmp_path / "s.zarr" / "zarr.json"
    document = json.loads(root.read_text())
    document["attributes"]["format_version"] = 99
    root.write_text(json.dumps(document))
    with pytest.raises(ValueError, match="format version 99; this program reads 1"):
        FeatureStore(tmp_path / "s.zarr")


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "not a feature store"), ("{", "not valid JSON"), ("{}", "not a f")],
)
def test_what_is_no_store_is_refused(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "zarr.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        read_attributes(tmp_path)


def test_a_reader_survives_pickling_for_spawned_workers(tmp_path: Path) -> None:
    data = write_store(tmp_path / "s.zarr", 9)
    maps = FeatureStore(tmp_path / "s.zarr").maps
    maps.read(np.array([0]))
    again = pickle.loads(pickle.dumps(maps))
    assert np.array_equal(again.read(np.array([8])), data["maps/blocks.6"][[8]])


def test_mapped_shards_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shared.zarr_files.MAX_MAPPED_SHARDS", 2)
    data = write_store(tmp_path / "s.zarr", 60)
    maps = FeatureStore(tmp_path / "s.zarr").maps
    for row in np.random.default_rng(0).permutation(60):
        assert np.array_equal(maps.read(np.array([row])), data["maps/blocks.6"][[row]])
    mapped = Path("/proc/self/maps").read_text().count("s.zarr/maps")
    assert mapped <= 2


@pytest.mark.parametrize("last_step", ["_keep_old", "_write"])
def test_a_commit_that_was_cut_anywhere_is_finished_once_and_keeps_the_old_shard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, last_step: str
) -> None:
    """Old rows stay with the old commit, new with the new, however often the journal is followed."""
    path = tmp_path / "s.zarr"
    write_store(path, 8)
    writer = StoreWriter(path, {}, SPECS, SHARD_CLIPS)
    old = writer.commit_of(0)
    assert old is not None
    writer.withdraw()
    data = rows(8, seed=1)
    new = Commit((0, 8), (("b", 0, 8),), writer.write_shard(0, iter([data])), [1.0] * 8, [50] * 8, {})
    done = getattr(StoreWriter, last_step)

    def cut_behind(self: StoreWriter, *arguments: object) -> None:
        done(self, *arguments)
        raise RuntimeError("power cut")

    with monkeypatch.context() as patch:
        patch.setattr(StoreWriter, last_step, cut_behind)
        with pytest.raises(RuntimeError, match="power cut"):
            writer.commit(0, new)
    again = StoreWriter(path, {}, SPECS, SHARD_CLIPS)
    assert again.commit_of(0) == new
    assert again.old_files.commit(0) == old
    kept = again.old_files.array("waveforms", 8)
    assert np.array_equal(kept.read(np.arange(8)), rows(8)["waveforms"])
    assert np.array_equal(again.files.array("waveforms", 8).read(np.arange(8)), data["waveforms"])
