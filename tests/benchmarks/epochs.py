"""An epoch of head training measured two ways, per clip: wall and CPU seconds."""

import os
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import soundfile
import torch
from torch.utils.data import DataLoader, Dataset

from shared.backbone import load_backbone
from shared.mel import LogMelImage, mel_spectrogram_layer, scaled_db, stack_channels
from shared.store import FeatureStore
from shared.taxonomy import Taxonomy
from shared.timm_door import import_timm
from shared.weights import find_weights
from trainer.config import LossConfig, TrainConfig
from trainer.data import feature_config, training_steps
from trainer.fit import prepare
from trainer.heads import Head
from trainer.loop import Precision, Training, make_optimiser, warmup_cosine
from trainer.mixup import Batch

BATCH = 64
STORED_STEPS, FLY_STEPS = 40, 3
CPU = torch.device("cpu")


def timed(work: Callable[[], object], num_clips: int) -> tuple[float, float]:
    """Return median wall and CPU seconds per clip of three calls; children's CPU time counts."""

    def cpu() -> float:
        times = os.times()
        return times.user + times.system + times.children_user + times.children_system

    seconds = []
    for _ in range(3):
        wall, used = time.perf_counter(), cpu()
        work()
        seconds.append((time.perf_counter() - wall, cpu() - used))
    walls, cpus = zip(*seconds, strict=True)
    return statistics.median(walls) / num_clips, statistics.median(cpus) / num_clips


def trained(head: Head, steps: Iterator[list[Batch]], num_steps: int) -> None:
    """Run optimiser steps on a fresh head."""
    config = TrainConfig()
    optimiser = make_optimiser(head, config.fit)
    rate = partial(warmup_cosine, num_steps=num_steps, warmup=0.1)
    training = Training(head, optimiser, rate, Precision(CPU), LossConfig(), clip_norm=1.0)
    training.run(steps, lambda batch: batch, lambda _: None)


def stored_seconds_per_clip(store: FeatureStore) -> tuple[float, float]:
    """Measure our own path: weighted drawing, the direct reader, one prefetch thread."""
    config = TrainConfig()
    prepared = prepare(store, Taxonomy(tuple(store.attributes["taxonomy"])), config, None)

    def epoch() -> None:
        head = Head(store.maps.row_shape[0], len(prepared.data.taxonomy), config.head)
        steps = training_steps(
            prepared.data, prepared.sampler, num_steps=STORED_STEPS, batch_clips=BATCH,
            accumulate=1, rng=np.random.default_rng(0),
        )  # fmt: skip
        trained(head, steps, STORED_STEPS)

    epoch()  # warm-up
    return timed(epoch, STORED_STEPS * BATCH)


class Recordings(Dataset[torch.Tensor]):
    """Random five-second clips decoded from the files, as training scripts do it."""

    def __init__(self, store: FeatureStore, audio: Path, num_clips: int) -> None:
        rows = np.random.default_rng(0).integers(0, store.num_rows, num_clips)
        names = store.recordings["filename"].to_numpy()
        self._files = [str(audio / names[r]) for r in store.clips["recording"].to_numpy()[rows]]
        self._starts = store.clips["start"].to_numpy()[rows]

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, item: int) -> torch.Tensor:
        with soundfile.SoundFile(self._files[item]) as file:
            file.seek(int(self._starts[item]))
            samples = file.read(160_000, dtype="float32")
        return torch.from_numpy(np.pad(samples, (0, 160_000 - len(samples))))


def on_the_fly_seconds_per_clip(store: FeatureStore, audio: Path, *, fast: bool) -> tuple[float, float]:
    """Measure decoding, log-mel and frozen backbone in front of the head in every step."""
    maps_of = _fast_front_end(store) if fast else _plain_front_end(store)
    data = Recordings(store, audio, FLY_STEPS * BATCH)
    num_classes = len(store.attributes["taxonomy"])

    def steps() -> Iterator[list[Batch]]:
        for waveforms in DataLoader(data, batch_size=BATCH, num_workers=1, prefetch_factor=2):
            with torch.inference_mode():
                maps = torch.cat([maps_of(part) for part in waveforms.split(16)])
            labels = torch.zeros(len(maps), num_classes)
            yield [
                Batch(
                    maps.clone(), labels, labels + 1, torch.ones(len(maps), maps.shape[3], dtype=torch.bool)
                )
            ]

    def epoch() -> None:
        trained(Head(store.maps.row_shape[0], num_classes, TrainConfig().head), steps(), FLY_STEPS)

    return timed(epoch, FLY_STEPS * BATCH)


def _fast_front_end(store: FeatureStore) -> Callable[[torch.Tensor], torch.Tensor]:
    config = feature_config(store)
    image = LogMelImage(config.mel, config.clips.grid(), CPU)
    backbone = load_backbone(config.backbone, CPU)
    return lambda waveforms: backbone(image(waveforms))[0]


def _plain_front_end(store: FeatureStore) -> Callable[[torch.Tensor], torch.Tensor]:
    config = feature_config(store)
    mel = mel_spectrogram_layer(config.mel, config.clips.sample_rate_hz)
    model = import_timm().create_model(config.backbone.name, pretrained=False).eval()
    model.load_state_dict(find_weights("pretrained", config.backbone.name, {}).tensors)

    def maps_of(waveforms: torch.Tensor) -> torch.Tensor:
        log_mel = scaled_db(mel(waveforms)[..., :320], config.mel.top_db)
        x = (stack_channels(log_mel, config.mel.channels) - 0.5) / 0.5
        maps: torch.Tensor = model.blocks(model.bn1(model.conv_stem(x)))
        return maps

    return maps_of
