"""Fixtures: a tiny data set and a tiny front end, so that whole programs run in a second or two."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile
from browser import Browser
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
    return make_tiny_data(tmp_path / "data")


def make_tiny_data(folder: Path) -> Path:
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


@pytest.fixture(scope="session")
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


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, run_program: Run) -> Path:
    """A tiny store and runs on it, for all tests: of all three folds, of one head, of a tuned network."""
    folder = tmp_path_factory.mktemp("trained")
    config, store, runs = folder / "tiny.toml", folder / "tiny.zarr", folder / "runs"
    config.write_text(TINY_TOML)
    data = make_tiny_data(folder / "data")
    run_program("featurestore", "build", "--config", config, "--metadata", data / "metadata.csv",
                "--audio", data / "audio", "--out", store)  # fmt: skip
    fit = ["fit", "--features", store, "--config", config]
    run_program("trainer", *fit, "--out", runs / "all", "--folds", "3", "--workers", "1")
    run_program("trainer", *fit, "--out", runs / "one", "--set", "fit.seed=5", "--set", "fit.epochs=30")
    tune = ["finetune", "--features", store, "--init", runs / "one", "--config", config]
    run_program("trainer", *tune, "--out", runs / "tuned", "--set", "finetune.epochs=1")
    return runs


@pytest.fixture
def store(trained: Path) -> Path:
    """The store of the trained runs; not to be changed."""
    return trained.parent / "tiny.zarr"


@pytest.fixture
def runs(trained: Path, tmp_path: Path) -> Path:
    """A copy of the trained runs, to be changed at will; their store is everybody's."""
    return Path(shutil.copytree(trained, tmp_path / "runs"))


@pytest.fixture
def scapes(tmp_path: Path) -> Path:
    """Six soundscapes of three tones each, half of them in a folder below."""
    folder = tmp_path / "scapes"
    (folder / "deep").mkdir(parents=True)
    rng = np.random.default_rng(2)
    for number in range(6):
        parts = [tone(float(f), 1.5) for f in rng.choice([500, 1500, 3000], 3)]
        samples = np.concatenate(parts)
        noise = 0.02 * rng.standard_normal(len(samples))
        place = folder / "deep" if number % 2 else folder
        soundfile.write(place / f"s{number}.wav", samples + noise, TINY_RATE_HZ)
    return folder


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """Chromium; tests that need it are skipped where it is not installed, but in CI."""
    made = Browser(tmp_path_factory.mktemp("browser"))
    yield made
    made.close()


@pytest.fixture
def no_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out what takes most of the time, where a test is of everything else."""

    def write(module: object, inputs: object, path: Path) -> float:
        path.write_bytes(b"graph")
        return 0.0

    monkeypatch.setattr("trainer.export._write_graph", write)
