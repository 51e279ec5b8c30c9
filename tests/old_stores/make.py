"""Makes the small stores that every later version must read: `python tests/old_stores/make.py`.

Run once per format version, and only then: the files are kept, not made again. They hold six clips
of tones in noise; what they must read as is kept beside them.
"""

import hashlib
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import soundfile

from featurestore.cli import main as featurestore
from shared.features import FORMAT_VERSION
from shared.store import FeatureStore

CONFIG = """
[clips]
sample_rate_hz = 4000
clip_seconds = 0.5
hop_seconds = 0.5
min_tail_seconds = 0.25
[mel]
n_fft = 256
hop_length = 62
num_mels = 32
fmax_hz = 2000.0
channels = "repeat"
[backbone]
name = "tf_efficientnet_lite0"
engine = "torch"
stages = ["last", "blocks.2"]
batch_clips = 2
[store]
shard_clips = 4
"""
LENGTHS = {"XC1.wav": 1.0, "XC2.wav": 0.8, "XC3.wav": 0.3, "XC4.wav": 0.5}


def write_data(folder: Path) -> None:
    """Write four recordings of two species, one shorter than a clip, and one that is no audio."""
    rng = np.random.default_rng(0)
    for number, (name, seconds) in enumerate(LENGTHS.items()):
        times = np.arange(int(seconds * 4000)) / 4000
        samples = 0.3 * np.sin(2 * np.pi * 300 * (number + 1) * times) + 0.02 * rng.standard_normal(
            len(times)
        )
        soundfile.write(folder / name, samples, 4000)
    (folder / "XC5.wav").write_bytes(b"no audio")
    table = pd.DataFrame(
        {
            "primary_label": ["low", "high", "low", "high", "low"],
            "secondary_labels": ["['high']", "[]", "[]", "[]", "[]"],
            "filename": [*LENGTHS, "XC5.wav"],
            "author": ["Müller, <é>", "", "b", "c", "d"],
            "rating": [4.0, 0.0, 3.5, 5.0, 1.0],
        }
    )
    table.to_csv(folder / "metadata.csv", index=False)
    (folder / "config.toml").write_text(CONFIG)


def content(path: Path) -> dict[str, object]:
    """Return what a store reads as: sha256 of its arrays, and its tables as text."""
    store = FeatureStore(path)
    rows = np.arange(store.num_rows)
    arrays = [*(f"maps/{stage}" for stage in store.stages), "waveforms"]
    tables = {name: getattr(store, name) for name in ("clips", "recordings", "labels")}
    return {
        "arrays": {
            name: hashlib.sha256(np.ascontiguousarray(store.array(name).read(rows)).tobytes()).hexdigest()
            for name in arrays
        },
        "frame_hops": {name: store.array(name).attributes.get("frame_hop") for name in arrays},
        "tables": {name: json.loads(table.to_json(orient="columns")) for name, table in tables.items()},
        "fingerprint": store.fingerprint,
        "taxonomy": store.attributes["taxonomy"],
    }


def main() -> None:
    """Make both containers and the text of what they hold."""
    here = Path(__file__).parent
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_data(folder)
        for suffix in ("zarr", "h5"):
            out = here / f"version_{FORMAT_VERSION}.{suffix}"
            if out.exists():
                sys.exit(f"{out} exists: it was made by the version that it is to speak for.")
            arguments = ["build", "--config", folder / "config.toml", "--metadata", folder / "metadata.csv"]
            arguments += ["--audio", folder, "--out", out]
            featurestore([str(argument) for argument in arguments], standalone_mode=False)
            out.with_name(f".{out.name}.seen").unlink()
    text = json.dumps(content(here / f"version_{FORMAT_VERSION}.zarr"), indent=1, ensure_ascii=False)
    (here / f"version_{FORMAT_VERSION}.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
