"""Another backbone's maps, or other stages, from the waveforms of a store."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from shared.store import FeatureStore

BuildTiny = Callable[..., Path]
Run = Callable[..., object]


def files_of(store: Path) -> dict[str, bytes]:
    found = [store] if store.is_file() else [path for path in store.rglob("*") if path.is_file()]
    return {str(path.relative_to(store)): path.read_bytes() for path in found}


def embed(run_program: Run, source: Path, out: Path, config: Path, *more: object, status: int = 0) -> str:
    result = run_program(
        "featurestore", "embed", source, "--out", out, "--config", config, *more, status=status
    )
    return str(result.output)  # type: ignore[attr-defined]


@pytest.mark.parametrize("suffix", [".zarr", ".h5"])
def test_embedding_a_store_is_building_it_with_nothing_decoded(
    build_tiny: BuildTiny, tiny_data: Path, tiny_config: Path, run_program: Run, suffix: str
) -> None:
    """Byte for byte, and the audio is gone by then."""
    stages = ("--set", 'backbone.stages=["blocks.4", "last"]')
    source = build_tiny(f"source{suffix}")
    built = build_tiny(f"built{suffix}", *stages)
    shutil.rmtree(tiny_data / "audio")
    out = tiny_data.parent / f"embedded{suffix}"
    embed(run_program, source, out, tiny_config, *stages)
    assert files_of(out) == files_of(built)


def test_stages_side_by_side_are_the_stages_alone(build_tiny: BuildTiny) -> None:
    """Twice the time resolution at stride 16, and each map is what a store of it alone holds."""
    both = build_tiny("both.zarr", "--set", 'backbone.stages=["last", "blocks.4"]')
    alone = build_tiny("alone.zarr", "--set", "backbone.stages=blocks.4")
    last, early = FeatureStore(both), FeatureStore(both, stage="blocks.4")
    assert last.stages == ["blocks.6", "blocks.4"]
    assert last.frame_hop == 2 * early.frame_hop
    assert early.maps.row_shape[1:] == tuple(2 * size for size in last.maps.row_shape[1:])
    rows = np.arange(last.num_rows)
    assert np.array_equal(early.maps.read(rows), FeatureStore(alone).maps.read(rows))
    with pytest.raises(ValueError, match="holds no maps of blocks.2, but of blocks.6, blocks.4"):
        FeatureStore(both, stage="blocks.2")


def test_a_head_trains_on_the_stage_that_its_config_names(
    build_tiny: BuildTiny, tiny_config: Path, run_program: Run, tmp_path: Path
) -> None:
    store = build_tiny("both.zarr", "--set", 'backbone.stages=["last", "blocks.4"]')
    run_program(
        "trainer", "fit", "--features", store, "--config", tiny_config, "--out", tmp_path / "run",
        "--set", "head.stage=blocks.4", "--set", "head.name=linear",
    )  # fmt: skip
    text = (tmp_path / "run" / "config.toml").read_text()
    assert 'stage = "blocks.4"' in text


def test_embedding_goes_on_where_it_was_and_changes_nothing_when_done(
    build_tiny: BuildTiny, tiny_config: Path, run_program: Run, tmp_path: Path
) -> None:
    source, out = build_tiny(), tmp_path / "out.zarr"
    embed(run_program, source, out, tiny_config, "--set", "backbone.stages=blocks.4")
    before = files_of(out)
    shard = next(path for path in sorted((out / "commits").iterdir()) if path.is_dir())
    shutil.rmtree(shard)
    assert "8 of 33 clips" in embed(
        run_program, source, out, tiny_config, "--set", "backbone.stages=blocks.4"
    )
    assert files_of(out) == before
    assert "0 of 33 clips" in embed(
        run_program, source, out, tiny_config, "--set", "backbone.stages=blocks.4"
    )
    assert files_of(out) == before


def test_what_embed_refuses_has_a_remedy(
    build_tiny: BuildTiny, tiny_config: Path, run_program: Run, tmp_path: Path
) -> None:
    bare = build_tiny("bare.zarr", "--no-waveforms")
    out = tmp_path / "out.zarr"
    assert "Build it again without that" in embed(run_program, bare, out, tiny_config, status=2)
    source = build_tiny()
    other_clips = embed(run_program, source, out, tiny_config, "--set", "clips.hop_seconds=0.5", status=2)
    assert "clips.hop_seconds: 1.0 -> 0.5" in other_clips
    assert "Build from the audio" in other_clips
    assert not out.exists()
