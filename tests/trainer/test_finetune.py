"""trainer finetune on a tiny store: where it starts, what moves, what is kept, and what is refused."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
from click.testing import Result
from safetensors.torch import load_file
from torch import nn

from shared.backbone import BackboneConfig
from shared.background import BackgroundNoise
from shared.clips import ClipConfig
from shared.features import FeatureConfig
from shared.mel import MelConfig
from shared.store import FeatureStore
from trainer.config import FinetuneConfig, HeadConfig, LossConfig
from trainer.data import all_batches
from trainer.evaluate import data_of
from trainer.finetune import tuning_optimiser
from trainer.heads import Head
from trainer.loop import Precision, Training, score_clips, warmup_cosine
from trainer.mixup import Batch
from trainer.network import Network, make_network
from trainer.opening import Opening, open_ensemble
from trainer.run import load_run

Run = Callable[..., Result]
CPU = torch.device("cpu")
QUICK = ["--set", "finetune.epochs=2", "--set", "finetune.batch_clips=8"]
TINY = FeatureConfig(
    clips=ClipConfig(sample_rate_hz=8000, clip_seconds=1.0, hop_seconds=1.0),
    mel=MelConfig(n_fft=256, hop_length=125, num_mels=32, fmax_hz=4000.0),
    backbone=BackboneConfig(name="tf_efficientnet_lite0"),
)


@pytest.fixture
def store(build_tiny: Callable[..., Path]) -> Path:
    return build_tiny()


@pytest.fixture
def head(store: Path, tiny_config: Path, run_program: Run) -> Path:
    out = store.parent / "head"
    run_program("trainer", "fit", "--features", store, "--config", tiny_config, "--out", out,
                "--set", "fit.epochs=10")  # fmt: skip
    return out


@pytest.fixture
def tune(store: Path, head: Path, run_program: Run) -> Callable[..., Path]:
    def run(name: str, *more: object, init: Path = head, status: int = 0) -> Path:
        out = store.parent / name
        run_program("trainer", "finetune", "--features", store, "--init", init, "--out", out,
                    *QUICK, *more, status=status)  # fmt: skip
        return out

    return run


def network(dtype: torch.dtype = torch.float32, **keys: object) -> Network:
    torch.manual_seed(0)
    config = FinetuneConfig(**keys)  # type: ignore[arg-type]
    head = Head(320, 1, 4, HeadConfig(dropout=0.0, frequency="mean"))
    nn.init.normal_(next(p for name, p in head.named_parameters() if p.ndim > 1), std=0.05)
    return make_network(TINY, "blocks.6", head, config, CPU).to(dtype)


def image_batch(num: int, seed: int = 0) -> Batch:
    rng = np.random.default_rng(seed)
    return Batch(
        torch.from_numpy(rng.random((num, 3, 32, 64), np.float32)),
        torch.from_numpy((rng.random((num, 4)) < 0.3).astype(np.float32)),
        torch.from_numpy((rng.random((num, 4)) < 0.8).astype(np.float32)),
        torch.ones(num, 2, dtype=torch.bool),
        torch.full((num,), 8000),
    )


def test_it_starts_where_the_head_is(
    store: Path, head: Path, tune: Callable[..., Path], run_program: Run
) -> None:
    start = json.loads((tune("tuned") / "run.json").read_text())["start"]
    scores = json.loads(run_program("trainer", "evaluate", head, "--json").output)
    assert start["macro_roc_auc"] == pytest.approx(scores["macro_roc_auc"], abs=1e-6)
    run = load_run(head)
    opened = FeatureStore(store)
    rows = np.arange(opened.num_rows)
    untrained = make_network(run.features, run.facts["stage"], run.model, FinetuneConfig(), CPU).eval()
    tuned = load_run(store.parent / "tuned")
    batches = list(all_batches(data_of(tuned, opened, CPU), rows))
    on_waveforms = score_clips(untrained, batches, Precision(CPU))
    on_maps = score_clips(run.model, all_batches(data_of(run, opened, CPU), rows), Precision(CPU))
    assert np.abs(on_waveforms - on_maps).max() < 0.01 * np.abs(on_maps).max()


def test_only_the_last_stages_and_the_head_move(tune: Callable[..., Path], head: Path) -> None:
    out = tune("tuned", "--set", "finetune.unfreeze_stages=2")
    found = load_file(out / "network.safetensors")
    run = load_run(head)
    config = FinetuneConfig(unfreeze_stages=2)
    before = make_network(run.features, run.facts["stage"], run.model, config, CPU).state_dict()
    assert set(found) == set(before)
    moved = {name for name, value in found.items() if not torch.equal(value, before[name])}
    # Layers 0 and 1 are the stem, then block N is layer N + 2; the fixed standardisation stays.
    trained = {n for n in found if n.startswith(("backbone.parts.0.7.", "backbone.parts.0.8.", "head."))}
    assert moved == {name for name in trained if "standardise" not in name}
    assert len(moved) > 10


def test_a_tuned_run_is_evaluated_and_predicts_with_its_own_backbone(
    store: Path, tiny_data: Path, tune: Callable[..., Path], run_program: Run, tmp_path: Path
) -> None:
    out = tune("tuned", "--set", "finetune.learning_rate=0.01")
    last = json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])
    facts = json.loads(run_program("trainer", "evaluate", out, "--json").output)
    assert facts["macro_roc_auc"] == pytest.approx(last["macro_roc_auc"])
    file = tmp_path / "submission.csv"
    run_program("trainer", "predict", out, "--audio", tiny_data / "audio", "--out", file)
    table = pd.read_csv(file).set_index("row_id")
    run, opened = load_run(out), FeatureStore(store)
    logits = score_clips(run.model, all_batches(data_of(run, opened, CPU), np.arange(4)), Precision(CPU))
    name = Path(opened.recordings["filename"].iloc[0]).stem
    expected = 1 / (1 + np.exp(-logits[: int((opened.clips["recording"] == 0).sum())]))
    found = table[table.index.str.startswith(f"{name}_")][list(run.taxonomy.species)].to_numpy()
    assert np.abs(found[: len(expected)] - expected[: len(found)]).max() < 1e-4
    run_program(
        "trainer", "predict", out, "--audio", tiny_data / "audio", "--out", file, "--weights", "x", status=2
    )


def test_trained_batch_norms_learn_their_statistics_and_predict_folded(
    store: Path, tune: Callable[..., Path]
) -> None:
    more = ["--set", "finetune.batch_norm=trained", "--set", "finetune.unfreeze_stages=1"]
    out = tune("tuned", *more, "--set", "finetune.ema=0.5", "--set", "finetune.interpolation=1")
    found = load_file(out / "network.safetensors")
    run = load_run(out)
    assert run.tune is not None
    assert isinstance(run.model, Network)
    bare = make_network(run.features, run.facts["stage"], run.model.head, run.tune.finetune, CPU)
    before = bare.state_dict()
    moved = {n for n in found if "running_mean" in n and not torch.equal(found[n], before[n])}
    assert moved == {n for n in found if "running_mean" in n and n.startswith("backbone.parts.0.8.")}
    assert moved
    clips = FeatureStore(store).array("waveforms").read(np.arange(4))
    ensemble = open_ensemble([out], Opening(CPU))
    maps = ensemble.scorers[0].embedder.embed(clips).maps[run.facts["stage"]]
    with torch.no_grad():
        images = run.model.front_end(torch.from_numpy(clips).float() / 32768)
        expected = run.model.backbone(images)[-1].numpy()
    assert np.abs(maps - expected).max() < 2e-3 * np.abs(expected).max()


@pytest.mark.parametrize(
    "setting",
    ["augment.steps=[]", "augment.steps=[{apply = \"gaussian_noise\", snr_db = [0, 5]}]", "mixing.mixup=none",
     "mixing.mixup=waveforms", "mixing.combine=0.5", "mixing.add=0.5", "finetune.backbone_rate=0.3",
     "finetune.stage_decay=0.5", "finetune.seed=1", "finetune.accumulate=2", "finetune.interpolation=1"],
)  # fmt: skip
def test_every_setting_changes_what_is_learned(tune: Callable[..., Path], setting: str) -> None:
    one, other = tune("one"), tune("other", "--set", setting)
    weights = [load_file(path / "network.safetensors") for path in (one, other)]
    assert any(not torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_accumulated_small_batches_are_the_large_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    def in_float64(batch: Batch, _: torch.device) -> Batch:
        return Batch(*(part.double() for part in batch[:3]), *batch[3:])

    monkeypatch.setattr("trainer.loop.to_device", in_float64)
    whole = [image_batch(8, seed) for seed in range(3)]
    parts = [[Batch(*(t[i : i + 2] for t in b)) for i in range(0, 8, 2)] for b in whole]
    models = []
    for steps in ([[b] for b in whole], parts):
        model = network(torch.float64, unfreeze_stages=99)
        config = FinetuneConfig(learning_rate=1e-3)
        rate = partial(warmup_cosine, num_steps=3, warmup=0.1)
        training = Training(model, tuning_optimiser(model, config), rate, Precision(CPU), LossConfig(), 1e9)
        training.run(steps, lambda batch: batch, lambda _: None)
        models.append(model)
    for one, two in zip(*(model.parameters() for model in models), strict=True):
        assert torch.allclose(one, two, rtol=1e-7, atol=1e-10)


def test_interpolated_weights_lie_on_the_way_from_the_start_to_the_trained_ones(
    tune: Callable[..., Path], head: Path
) -> None:
    ends = [tune(str(share), "--set", f"finetune.interpolation={share}") for share in (1.0, 0.25)]
    trained, quarter = (load_file(path / "network.safetensors") for path in ends)
    run = load_run(head)
    start = make_network(run.features, run.facts["stage"], run.model, FinetuneConfig(), CPU).state_dict()
    for name, value in quarter.items():
        assert torch.allclose(value, torch.lerp(start[name], trained[name], 0.25), atol=1e-7), name
    assert any(not torch.equal(trained[name], start[name]) for name in trained)


def test_checkpointing_changes_no_gradient() -> None:
    batch = image_batch(4)
    gradients = []
    for checkpointing in (False, True):
        model = network(unfreeze_stages=3, checkpointing=checkpointing).train()
        model(batch.maps, batch.mask).clip_wise.square().sum().backward()
        gradients.append([p.grad for p in model.parameters() if p.requires_grad])
    for one, two in zip(*gradients, strict=True):
        assert torch.allclose(one, two, rtol=1e-4, atol=1e-7)


def test_each_stage_has_its_learning_rate() -> None:
    model = network(unfreeze_stages=3)
    config = FinetuneConfig(learning_rate=1e-2, backbone_rate=0.1, stage_decay=0.5)
    rates = {
        id(p): group["lr"] for group in tuning_optimiser(model, config).param_groups for p in group["params"]
    }
    assert {rates[id(p)] for p in model.head.parameters()} == {1e-2}
    for stage, rate in zip(model.stages[-3:], (2.5e-4, 5e-4, 1e-3), strict=True):
        assert [*{rates[id(p)] for p in stage.parameters()}] == pytest.approx([rate])
    assert len(rates) == sum(p.requires_grad for p in model.parameters())
    assert len(model.stages) == 7


def test_a_network_learns_what_a_head_on_frozen_maps_cannot() -> None:
    model = network(unfreeze_stages=99)
    batch = image_batch(8)
    config = FinetuneConfig(learning_rate=3e-3, backbone_rate=0.3)
    rate = partial(warmup_cosine, num_steps=40, warmup=0.1)
    training = Training(model, tuning_optimiser(model, config), rate, Precision(CPU), LossConfig(), 1.0)
    first = training.run([[batch]], lambda batch: batch, lambda _: None)
    training.run([[batch]] * 38, lambda batch: batch, lambda _: None)
    assert training.run([[batch]], lambda batch: batch, lambda _: None) < 0.2 * first


def test_all_folds_are_tuned_and_compared(
    store: Path, tiny_config: Path, tune: Callable[..., Path], run_program: Run
) -> None:
    heads = store.parent / "heads"
    run_program("trainer", "fit", "--features", store, "--config", tiny_config, "--out", heads, "--folds", 3)
    out = tune("all", init=heads)
    facts = json.loads(run_program("trainer", "evaluate", out, "--json").output)
    assert facts["folds"] == 3
    assert facts["head"] == "attention, tuned"
    assert "[[augment.steps]]" in (out / "config.toml").read_text()
    for name in ("fold1", "fold2", "fold3"):
        one, two = (pd.read_csv(run / name / "split.csv") for run in (heads, out))
        assert one.equals(two)
    said = run_program("trainer", "compare", heads, out).output
    assert "12 recordings" in said
    tune("all", "--resume", init=heads)
    tune("all", "--resume", "--set", "finetune.seed=2", init=heads, status=2)


def test_other_weights_than_the_features_are_refused(head: Path, tune: Callable[..., Path]) -> None:
    facts = json.loads((head / "run.json").read_text())
    facts["fingerprint_of"]["backbone"]["weights"] = "0" * 64
    (head / "run.json").write_text(json.dumps(facts))
    assert not (tune("refused", status=2) / "network.safetensors").exists()


def test_a_store_serves_as_background(store: Path, build_tiny: Callable[..., Path]) -> None:
    other = build_tiny("other.zarr")
    noise = BackgroundNoise(source=str(other), sample_rate_hz=8000, clip_samples=8000, snr_db=(6.0, 6.0))
    clips = torch.from_numpy(FeatureStore(store).array("waveforms").read(np.arange(6))).float() / 32768
    added = noise(clips, torch.Generator().manual_seed(0)) - clips
    ratio = 10 * torch.log10(clips.square().mean(dim=1) / added.square().mean(dim=1))
    assert ratio.numpy() == pytest.approx(np.full(6, 6.0), abs=0.05)
    with pytest.raises(ValueError, match="as background they must be 4000 at 8000 Hz"):
        BackgroundNoise(source=str(other), sample_rate_hz=8000, clip_samples=4000)


def test_a_run_is_bound_to_what_its_backgrounds_hold(
    tune: Callable[..., Path], tiny_data: Path, tmp_path: Path
) -> None:
    rain = tmp_path / "rain"
    rain.mkdir()
    samples, rate = soundfile.read(tiny_data / "audio" / "low" / "XC100.wav")
    soundfile.write(rain / "rain.wav", samples[::-1], rate)
    steps = f'augment.steps=[{{apply = "background_noise", source = "{rain}"}}]'
    tune("rainy", "--set", steps)
    tune("rainy", "--set", steps, "--resume")
    soundfile.write(rain / "rain.wav", samples[::-2], rate)
    tune("rainy", "--set", steps, "--resume", status=2)


def epochs_done(run: Path) -> int:
    metrics = run / "metrics.jsonl"
    return len(metrics.read_text().splitlines()) if metrics.exists() else 0


def test_killed_and_resumed_it_ends_in_the_same_bits(store: Path, head: Path, tmp_path: Path) -> None:
    def command(out: Path) -> list[str]:
        code = "from trainer.cli import main; main()"
        arguments = ["finetune", "--features", store, "--init", head, "--out", out, "--resume", *QUICK,
                     "--set", "finetune.epochs=6", "--set", "mixing.add=0.3"]  # fmt: skip
        return [sys.executable, "-c", code, *map(str, arguments)]

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    subprocess.run(command(whole), check=True, capture_output=True)
    for wanted in (1, 4):
        process = subprocess.Popen(command(killed), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and epochs_done(killed) < wanted:
            time.sleep(0.01)
        assert process.poll() is None
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert epochs_done(killed) < 6
    subprocess.run(command(killed), check=True, capture_output=True)
    for name in ("network.safetensors", "out_of_fold.csv", "per_class.csv", "split.csv", "run.json"):
        assert (whole / name).read_bytes() == (killed / name).read_bytes(), name
    assert sorted(p.name for p in whole.iterdir()) == sorted(p.name for p in killed.iterdir())


def test_what_cannot_be_tuned_is_said_with_the_remedy(
    store: Path, head: Path, tune: Callable[..., Path], build_tiny: Callable[..., Path], run_program: Run,
    tiny_data: Path,
) -> None:  # fmt: skip
    def refused(features: Path, init: Path, *more: object) -> str:
        out = store.parent / "refused"
        return run_program("trainer", "finetune", "--features", features, "--init", init, "--out", out, *more,
                           status=2).output  # fmt: skip

    bare = build_tiny("bare.zarr", "--no-waveforms")
    assert "build it again without --no-waveforms" in refused(bare, head)
    assert "what can be set here is augment, mixing and finetune" in refused(
        store, head, "--set", "head.name=linear"
    )
    assert "tuned already" in refused(store, tune("tuned"))
    assert "no run folder" in refused(store, store.parent)
    background = f'augment.steps=[{{apply = "background_noise", source = "{store}"}}]'
    assert "recordings of this data set (low/XC100.wav first)" in refused(store, head, "--set", background)
    assert "watches a fold" in refused(store, head, "--set", "finetune.patience=2")
    assert "folded" in refused(store, head, "--set", "finetune.checkpointing=true",
                               "--set", "finetune.batch_norm=trained")  # fmt: skip
    assert "snr_db" in refused(store, head, "--set", 'augment.steps=[{apply = "pink_noise", snr = [1, 2]}]')
    assert "unfreeze_stages" in refused(store, head, "--set", "finetune.unfreeze_stages=-1")
    table = pd.read_csv(tiny_data / "metadata.csv")
    added = tiny_data / "audio" / "low" / "XC999.wav"
    added.write_bytes((tiny_data / "audio" / table["filename"][0]).read_bytes())
    row = pd.DataFrame([{**table.iloc[0], "filename": "low/XC999.wav"}])
    pd.concat([table, row]).to_csv(tiny_data / "metadata.csv", index=False)
    build_tiny()
    assert "has grown or shrunk" in refused(store, head)
    text = run_program("trainer", "fit", "--features", store, "--out", store.parent / "x",
                       "--set", "augment.steps=[]", status=2).output  # fmt: skip
    assert "trainer finetune" in text
