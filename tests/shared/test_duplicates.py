"""Near-duplicates: what is found among embeddings, and among real sounds stored again in other forms."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from shared.duplicates import recording_embeddings, similar_pairs
from shared.store import FeatureStore


@given(st.integers(0, 40), st.integers(0, 9), st.floats(0.0, 0.99))
def test_pairs_are_those_of_a_plain_double_loop(num: int, seed: int, threshold: float) -> None:
    rng = np.random.default_rng(seed)
    found = rng.standard_normal((num, 3)).astype(np.float32)
    found /= np.linalg.norm(found, axis=1, keepdims=True)
    cosines = found @ found.T
    expected = [(a, b) for a in range(num) for b in range(a + 1, num) if cosines[a, b] >= threshold]
    assert [tuple(pair) for pair in similar_pairs(found, threshold)] == expected


def test_pairs_across_blocks_are_found_once(monkeypatch: object) -> None:
    import shared.duplicates

    monkeypatch.setattr(shared.duplicates, "BLOCK", 7)  # type: ignore[attr-defined]
    found = np.eye(30, dtype=np.float32)
    found[25] = found[3]
    assert similar_pairs(found, 0.9).tolist() == [[3, 25]]


def test_a_recording_stored_again_is_found_and_another_is_not(
    data_folder: Path, tmp_path: Path, run_program: Callable[..., object]
) -> None:
    """Twenty recordings of different things, and each again at a third of its level and re-encoded."""
    table = pd.read_csv(data_folder / "esc10" / "train_metadata.csv").iloc[::20].reset_index(drop=True)
    rows = []
    for number, name in enumerate(table["filename"]):
        samples, rate = soundfile.read(data_folder / "esc10" / "train_audio" / name, dtype="float32")
        for kind, gain, suffix in (("one", 1.0, "wav"), ("two", 0.3, "mp3")):
            path = tmp_path / "audio" / f"{number}{kind}.{suffix}"
            path.parent.mkdir(exist_ok=True)
            soundfile.write(path, gain * samples, rate)
            rows.append((path.name, table["primary_label"][number]))
    pd.DataFrame(rows, columns=["filename", "primary_label"]).to_csv(tmp_path / "m.csv", index=False)
    run_program("featurestore", "build", "--metadata", tmp_path / "m.csv", "--audio", tmp_path / "audio",
                "--out", tmp_path / "s.zarr", "--set", "backbone.name=tf_efficientnet_lite0",
                "--set", "backbone.engine=torch")  # fmt: skip
    store = FeatureStore(tmp_path / "s.zarr")
    names = store.recordings["filename"].tolist()
    recordings, embeddings = recording_embeddings(
        store.maps, np.arange(store.num_rows), store.clips["recording"].to_numpy(np.int64)
    )
    pairs = {
        frozenset(int("".join(filter(str.isdigit, names[recordings[p].item()].split(".")[0]))) for p in pair)
        for pair in similar_pairs(embeddings, 0.95)
    }
    found = sum(len(pair) == 1 for pair in pairs)
    assert found >= 18
    assert sum(len(pair) == 2 for pair in pairs) == 0
