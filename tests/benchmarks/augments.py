"""Augmentations: ms per clip beside audiomentations, and what they are of a fine-tuning step."""

import inspect
import json
import subprocess
import sys
import tempfile
import venv
from functools import partial
from pathlib import Path

import torch
from measuring import Numbers, median_seconds, show

from shared.augment import TRANSFORMS
from shared.augment_policy import AugmentConfig, Policy
from shared.backbone import BackboneConfig
from shared.features import FeatureConfig
from trainer.config import FinetuneConfig, HeadConfig, LossConfig
from trainer.finetune import tuning_optimiser
from trainer.heads import Head
from trainer.loop import Precision, Training
from trainer.mixup import Batch
from trainer.network import make_network

BATCH, STEP_CLIPS, NUM_CLASSES = 32, 16, 182
CPU = torch.device("cpu")


def augment() -> Numbers:
    """Every transform on 32 clips, and a fine-tuning step of 16 with and without the default policy."""
    grid = FeatureConfig().clips.grid()
    waveforms = torch.randn(BATCH, grid.clip_samples) * 0.1
    works = {}
    for name, transform in TRANSFORMS.items():
        keys = {"sample_rate_hz": grid.sample_rate_hz}
        wanted = "sample_rate_hz" in inspect.signature(transform).parameters
        works[name] = partial(
            transform, waveforms, torch.Generator().manual_seed(0), **(keys if wanted else {})
        )
    policy = Policy(AugmentConfig(), grid.sample_rate_hz, grid.clip_samples)
    works["the default policy"] = partial(policy, waveforms, torch.Generator().manual_seed(0))
    ours = {name: seconds / BATCH * 1e3 for name, seconds in median_seconds(works).items()}
    theirs = audiomentations_ms()
    rows = [
        [name, f"{ms:.2f}", f"{theirs[name]:.2f}" if name in theirs else "",
         f"{theirs[name] / ms:.1f}" if name in theirs else ""]
        for name, ms in ours.items()
    ]  # fmt: skip
    header = ["transform", "ms per clip", "audiomentations", "x"]
    show(f"Augmentations of {BATCH} clips of 5 s, CPU, {torch.get_num_threads()} threads", header, rows)
    steps = step_seconds(policy)
    share = 1 - steps["plain"] / steps["augmented"]
    mel_share = 1 - steps["images"] / steps["plain"]
    rows = [[name, f"{STEP_CLIPS / seconds:.1f}"] for name, seconds in steps.items()]
    show("A fine-tuning step, lite0, last 3 stages, 16 clips", ["from", "clips/s"], rows)
    print(f"augmentation takes {share:.1%} of the augmented step, log-mel {mel_share:.1%} of the plain one")
    ratios = {f"augment.{n}_over_audiomentations": theirs[n] / ms for n, ms in ours.items() if n in theirs}
    return ratios | {"augment.share_of_step": share, "augment.mel_share_of_step": mel_share}


def audiomentations_ms() -> Numbers:
    """Install audiomentations into an environment of its own and measure it there; {} where it cannot be."""
    with tempfile.TemporaryDirectory() as name:
        venv.create(name, with_pip=True)
        python = Path(name) / "bin" / "python"
        install = [python, "-m", "pip", "install", "--quiet", "audiomentations"]
        if subprocess.run(install, capture_output=True).returncode:
            print("audiomentations cannot be installed here: it is left out", file=sys.stderr)
            return {}
        script = Path(__file__).with_name("audiomentations_speed.py")
        done = subprocess.run([python, script], check=True, capture_output=True, text=True)
        numbers: Numbers = json.loads(done.stdout.splitlines()[-1])
        return numbers


def step_seconds(policy: Policy) -> Numbers:
    """Return seconds of a step on images, on waveforms, and on augmented waveforms."""
    features = FeatureConfig(backbone=BackboneConfig(name="tf_efficientnet_lite0", weights="random"))
    head = Head(320, 7, NUM_CLASSES, HeadConfig())
    network = make_network(features, "blocks.6", head, FinetuneConfig(), CPU)
    optimiser = tuning_optimiser(network, FinetuneConfig())
    training = Training(network, optimiser, lambda _: 1.0, Precision(CPU), LossConfig(), clip_norm=1.0)
    labels = torch.zeros(STEP_CLIPS, NUM_CLASSES)
    waveforms = torch.randn(STEP_CLIPS, features.clips.grid().clip_samples) * 0.1
    batch = Batch(waveforms, labels, labels + 1, torch.ones(STEP_CLIPS, 10, dtype=torch.bool),
                  torch.full((STEP_CLIPS,), waveforms.shape[1]))  # fmt: skip
    rng = torch.Generator().manual_seed(0)
    images = network.front_end(waveforms)

    def drawn(batch: Batch, *, augmented: bool) -> Batch:
        maps = policy(batch.maps, rng) if augmented else batch.maps
        return batch._replace(maps=network.front_end(maps))

    def step(mix_name: str) -> None:
        if mix_name == "images":
            training.run([[batch._replace(maps=images)]], lambda same: same, lambda _: None)
        else:
            augmented = mix_name == "augmented"
            training.run([[batch]], partial(drawn, augmented=augmented), lambda _: None)

    return median_seconds(
        {name: partial(step, name) for name in ("images", "plain", "augmented")}, repeats=25
    )
