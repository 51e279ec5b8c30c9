"""Exported models: graphs that compute what torch does, a folder that stands alone, a card that is true."""

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pandas as pd
import pytest
import soundfile
import torch
from click.testing import Result
from scipy.special import expit, logit
from tones import TINY_RATE_HZ, tone

import shared.backbone
from shared.backbone import BackboneConfig, load_backbone
from shared.mel import LogMelImage
from shared.onnx_graph import onnx_bytes, onnx_session
from shared.taxonomy import Taxonomy
from trainer.calibration import Calibration, write_calibration
from trainer.config import HeadConfig
from trainer.data import frame_mask
from trainer.exported import IMAGE_GRAPH, OPENVINO_GRAPH, WAVEFORM_GRAPH, WEIGHTS, read_exported
from trainer.heads import Head
from trainer.opening import Opening, open_ensemble
from trainer.run import read_facts
from trainer.whole_model import OUTPUTS, WholeModel

Run = Callable[..., Result]
SPECIES = Taxonomy(("high", "low", "middle"))


def export(run_program: Run, run: Path, out: Path, *more: object, status: int = 0) -> Result:
    return run_program("trainer", "export", run, "--out", out, *more, status=status)


@pytest.fixture(scope="session")
def exported(trained: Path, run_program: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one head, exported in all forms, for all tests."""
    out = tmp_path_factory.mktemp("exported") / "model"
    export(run_program, trained / "one", out, "--openvino")
    return out


@pytest.fixture
def model(exported: Path, tmp_path: Path) -> Path:
    """A copy of it, to be changed at will."""
    return Path(shutil.copytree(exported, tmp_path / "model"))


def noise_and_tones(num: int, samples: int) -> np.ndarray:
    """Return clips (num, samples) of -1..1, of all colours and levels, some silent, some cut."""
    rng = np.random.default_rng(1)
    clips = rng.standard_normal((num, samples))
    times = np.arange(samples) / TINY_RATE_HZ
    clips += rng.uniform(0, 20, (num, 1)) * np.sin(2 * np.pi * rng.uniform(100, 3900, (num, 1)) * times)
    clips *= 10 ** rng.uniform(-6, 0, (num, 1)) / np.abs(clips).max(axis=1, keepdims=True)
    clips[::97] = 0
    return clips.astype(np.float32)


@pytest.mark.parametrize("run", ["all", "tuned"])
def test_both_graphs_give_torchs_probabilities_for_a_thousand_clips_in_any_batch(
    runs: Path, run_program: Run, tmp_path: Path, run: str
) -> None:
    slope, offset = np.array([3, 2, 1.5], np.float32), np.array([4, 2, 1], np.float32)
    write_calibration(Calibration(slope, offset, slope / 5, {}), SPECIES, runs / run / "calibration.json")
    export(run_program, runs / run, tmp_path / "model")
    exported = read_exported(tmp_path / "model", read_facts(tmp_path / "model"))
    grid, model = exported.features.clips.grid(), exported.model()
    clips = noise_and_tones(1000, grid.clip_samples)
    valid = np.random.default_rng(2).integers(1, grid.clip_samples + 1, 1000)
    loudest = clips / np.maximum(np.abs(clips).max(axis=1, keepdims=True), 1e-30)
    images = LogMelImage(exported.features.mel, grid, torch.device("cpu"))(torch.from_numpy(loudest))
    with torch.inference_mode():
        expected = [values.numpy() for values in model(images, torch.from_numpy(valid))]
    assert expected[0].std(axis=0).min() > 0.05  # else any graph would do
    assert len(model.heads) == (3 if run == "all" else 1)
    for name, inputs in ((IMAGE_GRAPH, {"image": images.numpy()}), (WAVEFORM_GRAPH, {"waveform": clips})):
        session = onnxruntime.InferenceSession(tmp_path / "model" / name)
        worst = 0.0
        for part in (slice(0, 1), slice(1, 300), slice(300, 1000)):
            given = {key: value[part] for key, value in inputs.items()} | {"valid_samples": valid[part]}
            found = session.run(["clip_wise", "frame_wise"], given)
            pairs = zip(found, expected, strict=False)
            worst = max(worst, *(float(np.abs(one - two[part]).max()) for one, two in pairs))
        assert worst <= 1e-4, name


@pytest.mark.parametrize("name", ["attention", "chrononet", "linear"])
def test_every_graph_counts_only_frames_with_sound_and_averages_its_backbones(
    name: str,
) -> None:
    torch.manual_seed(0)
    config = BackboneConfig(name="tf_efficientnet_lite0", stages=("blocks.3",))
    backbones = [load_backbone(config, torch.device("cpu")) for _ in range(2)]
    with torch.no_grad():
        for parameter in backbones[1].parameters():
            parameter *= 0.9
    heads = [
        Head(80, 2, 3, HeadConfig(name=name, strides=1 + (name == "chrononet"))).eval() for _ in range(2)
    ]
    for parameter in (parameter for head in heads for parameter in head.parameters()):
        torch.nn.init.normal_(parameter, std=0.3)
    slope, offset = np.array([1, 2, 3], np.float32), np.array([0.1, 0, -0.1], np.float32)
    calibration = Calibration(slope, offset, slope / 5, {})
    images, valid = torch.rand(4, 3, 32, 128), torch.tensor([1, 1600, 1601, 12_800])
    with torch.inference_mode():
        whole = WholeModel(backbones, list(heads), calibration, map_hop=1600, num_map_frames=8)
        clip_wise, frame_wise, *_ = whole(images, valid)
        mask = torch.from_numpy(frame_mask(valid.numpy(), frame_hop=1600, num_frames=8))
        assert mask.sum(dim=1).tolist() == [1, 1, 2, 8]
        outputs = [head(backbone(images)[0], mask) for head, backbone in zip(heads, backbones, strict=True)]
    for found, parts in (
        (clip_wise, [one.clip_wise for one in outputs]), (frame_wise, [one.frame_wise for one in outputs]),
    ):  # fmt: skip
        expected = expit(torch.stack(parts).mean(dim=0).numpy() * slope + offset)
        assert np.abs(found.numpy() - expected).max() < 1e-6
        assert (parts[0] - parts[1]).abs().max() > 0.1
    inputs = {"image": images, "valid_samples": valid}
    examples = {key: value[:2] for key, value in inputs.items()}
    session = onnx_session(onnx_bytes(whole, examples, OUTPUTS, any_batch=True), 1)
    graph = session.run(list(OUTPUTS[:2]), {key: value.numpy() for key, value in inputs.items()})
    assert np.abs(graph[0] - clip_wise.numpy()).max() < 1e-5
    assert np.abs(graph[1] - frame_wise.numpy()).max() < 1e-5


def test_folds_of_tuned_networks_are_exported_with_a_backbone_each(
    runs: Path, store: Path, scapes: Path, tiny_config: Path, run_program: Run, tmp_path: Path
) -> None:
    run_program("trainer", "finetune", "--features", store, "--init", runs / "all", "--config", tiny_config,
                "--out", runs / "tuned folds", "--set", "finetune.epochs=1")  # fmt: skip
    export(run_program, runs / "tuned folds", tmp_path / "model")
    facts = read_facts(tmp_path / "model")
    assert (facts["backbones"], facts["heads"]) == (3, 3)
    expected = predicted(run_program, tmp_path / "run.csv", runs / "tuned folds", "--audio", scapes)
    for engine in ("torch", "onnxruntime"):
        given = [tmp_path / "model", "--audio", scapes, "--engine", engine]
        found = predicted(run_program, tmp_path / f"{engine}.csv", *given)
        assert (found - expected).abs().max().max() < 1e-4, engine


def predicted(run_program: Run, out: Path, *args: object) -> pd.DataFrame:
    run_program("trainer", "predict", *args, "--out", out)
    return pd.read_csv(out, index_col=0)


def test_predict_from_the_folder_is_predict_from_the_run_by_every_engine(
    runs: Path, scapes: Path, run_program: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ones = np.ones(3, np.float32)
    calibration = Calibration(2 * ones, ones, 0.4 * ones, {})
    write_calibration(calibration, SPECIES, runs / "all" / "calibration.json")
    audio = ["--audio", scapes, "--overlap", 0.5]
    expected = predicted(run_program, tmp_path / "run.csv", runs / "all", *audio)
    plain = predicted(run_program, tmp_path / "plain.csv", runs / "all", *audio, "--uncalibrated")
    assert (expected - plain).abs().max().max() > 0.05
    model = tmp_path / "elsewhere" / "model"
    export(run_program, runs / "all", model, "--openvino")
    shutil.rmtree(runs)

    def no_weights(*_: object) -> None:
        raise ValueError("there are no weights here")

    monkeypatch.setattr(shared.backbone, "find_weights", no_weights)
    for engine in ("torch", "onnxruntime", "openvino"):
        given = [model, *audio, "--engine", engine]
        found = predicted(run_program, tmp_path / f"{engine}.csv", *given)
        assert (found - expected).abs().max().max() < 1e-4, engine
        found = predicted(run_program, tmp_path / f"{engine}2.csv", *given, "--uncalibrated")
        assert (found - plain).abs().max().max() < 1e-4, engine
    both = predicted(run_program, tmp_path / "both.csv", model, model, *audio)
    assert (both - expected).abs().max().max() < 1e-4


def test_beside_runs_it_keeps_its_place_and_its_species(
    model: Path, runs: Path, store: Path, scapes: Path, tiny_config: Path, run_program: Run, tmp_path: Path
) -> None:
    taxonomy = tmp_path / "t.csv"
    taxonomy.write_text("primary_label\nmiddle\nlow\nhigh\n")
    run_program("trainer", "fit", "--features", store, "--config", tiny_config, "--out", runs / "other",
                "--taxonomy", taxonomy, "--set", "fit.epochs=30")  # fmt: skip
    opening = Opening(torch.device("cpu"), engine="onnxruntime")
    for paths in ([runs / "other", model], [model, runs / "other"]):
        ensemble = open_ensemble(paths, opening)
        assert [scorer.sides for scorer in ensemble.scorers] == [[0], [1]]  # the last one is shed first
    audio = ["--audio", scapes]
    one = predicted(run_program, tmp_path / "1.csv", runs / "other", *audio)
    two = predicted(run_program, tmp_path / "2.csv", model, *audio)
    both = predicted(run_program, tmp_path / "3.csv", runs / "other", model, *audio)
    assert list(both) == ["middle", "low", "high"]
    expected = expit((logit(one) + logit(two[list(both)])) / 2)
    assert (both - expected).abs().max().max() < 1e-4


def test_openvino_takes_its_own_file_and_else_the_graph(
    model: Path, scapes: Path, run_program: Run, tmp_path: Path
) -> None:
    command = [model, "--audio", scapes, "--engine", "openvino"]
    expected = predicted(run_program, tmp_path / "0.csv", *command)
    (model / IMAGE_GRAPH).rename(model / "away")
    pd.testing.assert_frame_equal(predicted(run_program, tmp_path / "1.csv", *command), expected)
    (model / OPENVINO_GRAPH).unlink()
    said = run_program("trainer", "predict", *command, "--out", tmp_path / "2.csv", status=2).output
    assert "lacks model.onnx; export it again, or use --engine torch" in said
    (model / "away").rename(model / IMAGE_GRAPH)
    found = predicted(run_program, tmp_path / "3.csv", *command)
    assert (found - expected).abs().max().max() < 1e-5
    (model / IMAGE_GRAPH).write_bytes(b"no graph")
    for engine in ("openvino", "onnxruntime"):
        given = [*command[:-1], engine, "--out", tmp_path / "4.csv"]
        assert f"{engine} cannot read" in run_program("trainer", "predict", *given, status=2).output


def test_the_cards_own_program_runs_without_ours(model: Path, run_program: Run, tmp_path: Path) -> None:
    card = (model / "README.md").read_text()
    (program,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    samples = tone(1500, 3) + 0.02 * np.random.default_rng(0).standard_normal(3 * TINY_RATE_HZ)
    soundfile.write(model / "recording.wav", samples, TINY_RATE_HZ)
    command = [sys.executable, "-I", "-c", program]  # -I: none of our packages by the working folder
    lines = subprocess.run(command, cwd=model, check=True, capture_output=True, text=True).stdout.splitlines()
    assert [line.split()[:3] for line in lines] == [[f"{second:.1f}", "s", "middle"] for second in range(3)]
    ours = predicted(run_program, tmp_path / "s.csv", model, "--audio", model / "recording.wav")
    assert [float(line.split()[3]) for line in lines] == pytest.approx(ours["middle"].tolist(), abs=2e-3)


def test_what_is_there_is_not_lost(
    runs: Path, run_program: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_graphs: None
) -> None:
    out = tmp_path / "model"
    assert "exists" in export(run_program, runs / "one", runs / "all", status=2).output
    kept = export(run_program, runs / "one", runs / "all", "--overwrite", status=2).output
    assert "is no exported model" in kept
    export(run_program, runs / "one", out)
    before = {file.name: file.read_bytes() for file in out.iterdir()}
    assert "exists" in export(run_program, runs / "all", out, status=2).output

    def fails(*_: object) -> Any:
        raise ValueError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr("trainer.export_command.model_card", fails)
        export(run_program, runs / "all", out, "--overwrite", status=2)
    assert {file.name: file.read_bytes() for file in out.iterdir()} == before
    rename = Path.rename

    def only_the_old(self: Path, target: Path) -> Path:
        if self.name.endswith(".tmp"):
            raise OSError("no more renames")
        return rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", only_the_old)
        export(run_program, runs / "all", out, "--overwrite", status=2)
    assert {file.name: file.read_bytes() for file in out.iterdir()} == before
    out.rename(tmp_path / ".model.old")  # as a kill between the two renames leaves it
    assert "exists" in export(run_program, runs / "all", out, status=2).output
    assert {file.name: file.read_bytes() for file in out.iterdir()} == before
    shutil.copytree(out, tmp_path / ".model.old")  # and one behind them
    export(run_program, runs / "all", out, "--overwrite")
    assert read_facts(out)["heads"] == 3
    assert sorted(file.name for file in tmp_path.iterdir() if file.name.startswith(".")) == []


def test_a_graph_that_computes_something_else_is_not_written(
    runs: Path, run_program: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import trainer.export

    write = trainer.export.onnx_bytes

    def another(module: torch.nn.Module, *args: Any, **keys: Any) -> bytes:
        model = getattr(module, "model", module)
        before = model.offset.clone()
        model.offset += 0.01
        graph = write(module, *args, **keys)
        model.offset.copy_(before)
        return graph

    monkeypatch.setattr(trainer.export, "onnx_bytes", another)
    said = export(run_program, runs / "one", tmp_path / "model", status=2).output
    assert "other probabilities than torch" in said
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    ("file", "damage", "line"),
    [
        (WEIGHTS, lambda file: file.write_bytes(file.read_bytes()[:1000]), "is damaged"),
        (WEIGHTS, lambda file: file.unlink(), "lacks model.safetensors; use --engine"),
        ("prior.csv", lambda file: file.write_text("primary_label,prior\nlow,0.5\n"), "missing or damaged"),
        ("run.json", lambda file: file.write_text('{"format": 1, "kind": "export"}'), "export the model"),
    ],
)  # fmt: skip
def test_a_damaged_folder_is_one_line(
    model: Path, scapes: Path, run_program: Run, tmp_path: Path,
    file: str, damage: Callable[..., None], line: str,
) -> None:  # fmt: skip
    damage(model / file)
    command = ["predict", model, "--audio", scapes, "--out", tmp_path / "s.csv", "--engine", "torch"]
    assert line in run_program("trainer", *command, status=2).output


def test_an_exported_model_is_no_run_to_train_from_or_to_export_again(
    model: Path, store: Path, run_program: Run, tmp_path: Path
) -> None:
    assert "an exported model already" in export(run_program, model, tmp_path / "2", status=2).output
    for command in (
        ["evaluate", model],
        ["finetune", "--features", store, "--init", model, "--out", tmp_path / "3"],
    ):
        said = run_program("trainer", *command, status=2).output
        assert f"{model} is an exported model" in said
