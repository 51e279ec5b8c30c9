"""Fixtures: a tiny data set and a tiny front end, so that whole programs run in a second or two."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile
from click.testing import CliRunner, Result
from tones import TINY_RATE_HZ, tone

TINY_TOML = """
[clips]
sample_rate_hz = 8000
clip_seconds = 1.0
hop_seconds = 1.0
min_tail_seconds = 0.25

[mel]
n_fft = 256
hop_length = 125
num_mels = 32
fmax_hz = 4000.0
channels = "repeat"

[backbone]
name = "tf_efficientnet_lite0"
engine = "torch"
batch_clips = 4

[store]
shard_clips = 8

[fit]
epochs = 3
batch_clips = 8
learning_rate = 0.01

[split]
folds = 3
"""


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder of real recordings; tests that need it are skipped where it is not set."""
    folder = os.environ.get("DAWNCHORUS_DATA")
    if not folder:
        pytest.skip("DAWNCHORUS_DATA is not set: no real recordings")
    return Path(folder)


@pytest.fixture
def tiny_config(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.toml"
    path.write_text(TINY_TOML)
    return path


@pytest.fixture
def tiny_data(tmp_path: Path) -> Path:
    """Twelve recordings of three species, tones in noise; 2 to 4 clips each."""
    folder = tmp_path / "data"
    rng = np.random.default_rng(0)
    rows = []
    for number in range(12):
        species = ("low", "middle", "high")[number % 3]
        frequency = {"low": 500, "middle": 1500, "high": 3000}[species]
        samples = tone(frequency, 2.0 + 0.3 * (number % 5))
        samples = samples + 0.02 * rng.standard_normal(len(samples)).astype(np.float32)
        path = folder / "audio" / species / f"XC{100 + number}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, samples, TINY_RATE_HZ)
        rows.append(
            {
                "primary_label": species,
                "secondary_labels": "[]",
                "filename": f"{species}/XC{100 + number}.wav",
                "rating": 4.0,
            }
        )
    pd.DataFrame(rows).to_csv(folder / "metadata.csv", index=False)
    return folder


Run = Callable[..., Result]


@pytest.fixture
def run_program() -> Run:
    """Run `featurestore` or `trainer` in this process and return what came out."""
    from featurestore.cli import main as featurestore
    from trainer.cli import main as trainer

    programs = {"featurestore": featurestore, "trainer": trainer}

    def run(program: str, *args: object, status: int = 0) -> Result:
        result = CliRunner().invoke(programs[program], [str(arg) for arg in args])
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == status, result.output
        return result

    return run


@pytest.fixture
def build_tiny(tiny_data: Path, tiny_config: Path, run_program: Run) -> Callable[..., Path]:
    """Build the tiny data set into a store and return its path."""

    def build(name: str = "tiny.zarr", *more: object, status: int = 0) -> Path:
        out = tiny_data.parent / name
        run_program(
            "featurestore", "build", "--config", tiny_config, "--metadata",
            tiny_data / "metadata.csv", "--audio", tiny_data / "audio", "--out", out, *more,
            status=status,
        )  # fmt: skip
        return out

    return build
