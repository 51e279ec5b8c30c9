"""Every byte counts: flip one anywhere, and verify names it and repair brings it back."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from featurestore.repair import repair_store
from featurestore.verify import verify_store
from shared.store import FeatureStore

BuildTiny = Callable[..., Path]
Run = Callable[..., object]
FLIPS_ALONE, FLIPS_TOGETHER = 20, 280


def all_files(store: Path) -> list[Path]:
    return [store] if store.is_file() else sorted(path for path in store.rglob("*") if path.is_file())


def contents(store: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in all_files(store)}


def flip(path: Path, position: int, mask: int) -> None:
    with path.open("r+b") as file:
        file.seek(position)
        byte = file.read(1)[0]
        file.seek(position)
        file.write(bytes([byte ^ mask]))


def random_positions(files: dict[Path, bytes], num: int, seed: int) -> list[tuple[Path, int, int]]:
    """Half of the flips anywhere by size, half with every file equally likely: small files too."""
    rng = np.random.default_rng(seed)
    paths, sizes = list(files), np.array([len(data) for data in files.values()])
    chosen = []
    for number in range(num):
        weights = sizes / sizes.sum() if number % 2 else np.full(len(sizes), 1 / len(sizes))
        place = rng.choice(len(paths), p=weights)
        chosen.append((paths[place], int(rng.integers(sizes[place])), 1 << int(rng.integers(8))))
    return chosen


def repair(store: Path, audio: Path) -> None:
    left = repair_store(
        store, [audio], lambda line: None, weights=None, workers=2, allow_mixed=False, break_lock=False
    )
    assert left == []


def test_a_sound_store_is_sound(build_tiny: BuildTiny, tiny_data: Path, run_program: Run) -> None:
    for name in ("tiny.zarr", "tiny.h5"):
        store = build_tiny(name)
        result = run_program("featurestore", "verify", store, "--audio", tiny_data / "audio")
        assert "sound" in result.output  # type: ignore[attr-defined]


def test_three_hundred_flips_are_each_named(build_tiny: BuildTiny) -> None:
    store = build_tiny()
    before = contents(store)
    for path, position, mask in random_positions(before, 300, seed=1):
        flip(path, position, mask)
        named = [found.what for found in verify_store(store, [])]
        assert path.relative_to(store).as_posix() in named, (path, position, mask)
        assert len(named) == 1, named
        path.write_bytes(before[path])
    assert verify_store(store, []) == []


def test_sixty_flips_of_an_hdf5_file_are_each_named(build_tiny: BuildTiny) -> None:
    store = build_tiny("tiny.h5")
    before = store.read_bytes()
    rng = np.random.default_rng(2)
    for number in range(60):
        position = int(rng.integers(4096 if number % 4 == 0 else len(before)))
        flip(store, position, 1 << int(rng.integers(8)))
        assert verify_store(store, []), position
        store.write_bytes(before)
    assert verify_store(store, []) == []


@pytest.mark.parametrize("name", ["tiny.zarr", "tiny.h5"])
def test_repair_brings_a_flipped_byte_back(build_tiny: BuildTiny, tiny_data: Path, name: str) -> None:
    store = build_tiny(name)
    before = contents(store)
    num = FLIPS_ALONE if name == "tiny.zarr" else FLIPS_ALONE // 2
    for path, position, mask in random_positions(before, num, seed=3):
        flip(path, position, mask)
        repair(store, tiny_data / "audio")
        assert contents(store) == before, (path, position)
        assert not (store / ".tmp").exists()


def test_repair_brings_many_flips_back_at_once(build_tiny: BuildTiny, tiny_data: Path) -> None:
    """As many as hit: but never a document together with its second copy, which nothing could mend."""
    store = build_tiny()
    before = contents(store)
    together: dict[Path, tuple[int, int]] = {}
    for path, position, mask in random_positions(before, FLIPS_TOGETHER, seed=4):
        if "recovery" not in path.parts:
            together[path] = (position, mask)
    for path, (position, mask) in together.items():
        flip(path, position, mask)
    damaged = {found.what for found in verify_store(store, [])}
    documents = {path.relative_to(store).as_posix() for path in together}
    assert {name for name in documents if not name.startswith(("maps", "waveforms"))} <= damaged
    repair(store, tiny_data / "audio")
    assert contents(store) == before


def test_a_document_and_its_copy_both_damaged_say_what_to_do(build_tiny: BuildTiny, tiny_data: Path) -> None:
    store = build_tiny()
    flip(store / "recovery" / "c" / "0", 4000, 1)
    table = next(path for path in (store / "tables").rglob("*") if path.name == "0" and path.is_file())
    flip(table, 5, 1)
    with pytest.raises(ValueError, match="second copy are both damaged; run `featurestore build`"):
        repair(store, tiny_data / "audio")


def test_a_maps_shard_is_made_again_from_the_waveforms_without_audio(
    build_tiny: BuildTiny, tmp_path: Path
) -> None:
    store = build_tiny()
    before = contents(store)
    (store / "maps" / "blocks.6" / "c" / "1" / "0" / "0" / "0").unlink()
    repair(store, tmp_path / "nowhere")
    assert contents(store) == before


def test_repair_without_the_audio_it_needs_names_it(build_tiny: BuildTiny, run_program: Run) -> None:
    store = build_tiny()
    flip(store / "waveforms" / "c" / "0" / "0", 100, 1)
    result = run_program("featurestore", "verify", store, status=1)
    assert "waveforms/c/0/0: damaged rows: 0" in result.output  # type: ignore[attr-defined]
    result = run_program("featurestore", "repair", store, "--audio", store, status=2)
    assert "recordings are needed and not below --audio" in result.output  # type: ignore[attr-defined]


def test_other_audio_under_the_same_name_is_named(
    build_tiny: BuildTiny, tiny_data: Path, run_program: Run
) -> None:
    store = build_tiny()
    shutil.copy(tiny_data / "audio" / "low" / "XC103.wav", tiny_data / "audio" / "low" / "XC100.wav")
    (tiny_data / "audio" / "high" / "XC102.wav").unlink()
    result = run_program("featurestore", "verify", store, "--audio", tiny_data / "audio", status=1)
    assert "low/XC100.wav: is not the recording" in result.output  # type: ignore[attr-defined]
    assert "high/XC102.wav: no such recording" in result.output  # type: ignore[attr-defined]


def test_a_stray_file_is_named(build_tiny: BuildTiny) -> None:
    store = build_tiny()
    (store / "maps" / "notes.txt").write_text("x")
    assert [found.what for found in verify_store(store, [])] == ["maps/notes.txt"]


def test_a_row_under_another_recordings_audio_is_named(build_tiny: BuildTiny) -> None:
    """The binding of rows to audio: tables that disagree with the commits, every checksum intact."""
    from shared.store_writer import ArraySpec, StoreWriter

    path = build_tiny()
    store = FeatureStore(path)
    specs = {
        name: ArraySpec(array.row_shape, array.dtype.name, array.attributes)
        for name in store.files.array_names()
        for array in [store.array(name)]
    }
    writer = StoreWriter(path, {}, specs, store.attributes["shard_clips"])
    clips = store.clips.assign(recording=store.clips["recording"].to_numpy()[::-1])
    writer.publish({"clips": clips, "recordings": store.recordings, "labels": store.labels})
    damage = verify_store(path, [])
    assert damage
    assert all("not those of the tables" in found.detail for found in damage)
