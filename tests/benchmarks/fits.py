"""Training a head: how much of a step is data, an epoch from the store against on the fly, and memory."""

import os
import statistics
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import soundfile
import torch
from measuring import median_seconds, peak_anonymous_mb
from torch.utils.data import DataLoader, Dataset

from shared.audio import Finding
from shared.backbone import load_backbone
from shared.commit import Commit
from shared.mel import LogMelImage, mel_spectrogram_layer, scaled_db, stack_channels
from shared.store import FeatureStore
from shared.store_writer import ArraySpec, StoreWriter
from shared.taxonomy import Taxonomy
from shared.timm_door import import_timm
from shared.weights import find_weights
from trainer.config import HeadConfig, LossConfig, SplitConfig, TrainConfig
from trainer.data import ClipData, feature_config, training_steps
from trainer.heads import Head
from trainer.jobs import Fitter, Job
from trainer.loop import Precision, Training, make_optimiser, warmup_cosine
from trainer.mixup import Batch

BATCH = 64
STORED_STEPS, FLY_STEPS, EFFICIENCY_STEPS, MEMORY_STEPS = 40, 3, 40, 60
EFFICIENCY_REPEATS = 15
SHARD_CLIPS, NUM_RECORDINGS = 512, 1000
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


def fitter_of(path: Path) -> tuple[Fitter, TrainConfig]:
    """Return what fits share, for the default config without a look for duplicates."""
    config = TrainConfig(split=SplitConfig(duplicates=0))
    taxonomy = Taxonomy(tuple(FeatureStore(path).attributes["taxonomy"]))
    return Fitter(path, taxonomy, CPU), config


def drawn_rows(fitter: Fitter, config: TrainConfig, num_steps: int) -> tuple[ClipData, np.ndarray]:
    """Return the data of a fit, and its rows as drawn (steps, 1, BATCH)."""
    prepared = fitter.prepare(Job(Path(), config, (1,)))
    rows = prepared.sampler.draw_epoch(num_steps, BATCH, np.random.default_rng(0))
    return prepared.data, rows[:, None]


def drawn_steps(fitter: Fitter, config: TrainConfig, num_steps: int) -> Iterator[list[Batch]]:
    """Return steps as `trainer fit` makes them."""
    return training_steps(*drawn_rows(fitter, config, num_steps))


def stored_seconds_per_clip(path: Path, head_config: HeadConfig) -> tuple[float, float]:
    """Measure our own path: weighted drawing, the direct reader, one prefetch thread."""
    fitter, config = fitter_of(path)
    data = fitter.data(config)

    def epoch() -> None:
        head = Head(*data.store.maps.row_shape[:2], len(data.taxonomy), head_config)
        trained(head, drawn_steps(fitter, config, STORED_STEPS), STORED_STEPS)

    epoch()  # warm-up
    return timed(epoch, STORED_STEPS * BATCH)


def data_efficiency(path: Path, head_config: HeadConfig) -> tuple[float, float, float]:
    """Return steps per second with the real data path, with one constant batch, and without a head.

    In turns, medians of EFFICIENCY_REPEATS; the steps are the same otherwise. What is done once per fit
    (tables, split) is done before.
    """
    fitter, config = fitter_of(path)
    data, rows = drawn_rows(fitter, config, EFFICIENCY_STEPS)
    (constant,) = next(iter(training_steps(data, rows)))
    constant = Batch(constant.maps.clone(), *constant[1:])

    def run(steps: Iterator[list[Batch]]) -> None:
        head = Head(*data.store.maps.row_shape[:2], len(data.taxonomy), head_config)
        trained(head, steps, EFFICIENCY_STEPS)

    seconds = median_seconds(
        {
            "real": lambda: run(training_steps(data, rows)),
            "constant": lambda: run(iter([[constant]] * EFFICIENCY_STEPS)),
            "data alone": lambda: deque(training_steps(data, rows), maxlen=0),
        },
        repeats=EFFICIENCY_REPEATS,
    )
    real, constant_batch, alone = (EFFICIENCY_STEPS / value for value in seconds.values())
    return real, constant_batch, alone


def write_repeated_store(path: Path, like: Path, num_rows: int) -> int:
    """Write a store of 1,000 recordings whose shards are all hard links to one; return its bytes as told.

    Of maps of 1280x7x10, so that it passes the machine's memory with few rows in the tables.
    """
    template = FeatureStore(like)
    shape, stage = (1280, 7, 10), template.stage
    attributes = {
        name: template.attributes[name]
        for name in ("fingerprint", "fingerprint_of", "config", "taxonomy", "stages")
    }
    spec = {f"maps/{stage}": ArraySpec(shape, "float16", {"frame_hop": template.frame_hop})}
    writer = StoreWriter(path, attributes, spec, SHARD_CLIPS)
    rows = np.random.default_rng(0).standard_normal((SHARD_CLIPS, *shape), np.float32).astype(np.float16)
    files = writer.write_shard(0, iter([{f"maps/{stage}": rows}]))
    bound_to = (0, SHARD_CLIPS), (("a", 0, SHARD_CLIPS),)
    ones = [1] * SHARD_CLIPS
    commit = Commit(*bound_to, files, [1.0] * SHARD_CLIPS, ones, {"a": Finding("ok")})
    writer.commit(0, commit)
    first = writer.files.shard_file(f"maps/{stage}", 0, shape)
    for shard in range(1, -(-num_rows // SHARD_CLIPS)):
        target = writer.files.shard_file(f"maps/{stage}", shard, shape)
        target.parent.mkdir(parents=True)
        os.link(first, target)
    each = num_rows // NUM_RECORDINGS
    recording = np.arange(num_rows) // each
    start = (np.arange(num_rows) % each) * 160_000
    clips = pd.DataFrame({"recording": recording, "start": start, "valid_samples": 160_000, "gain": 1.0})
    numbers = np.arange(NUM_RECORDINGS)
    recordings = pd.DataFrame(
        {"filename": [f"{n}.ogg" for n in numbers], "source": "main", "xc_id": "", "in_metadata": True,
         "sha256": [f"{n:064x}" for n in numbers], "status": "ok"}
    )  # fmt: skip
    labels = pd.DataFrame(
        {"recording": numbers, "species": np.array(attributes["taxonomy"], object)[numbers % 2],
         "kind": "primary", "start": -1, "stop": -1, "value": 1.0, "weight": 1.0}
    )  # fmt: skip
    writer.publish({"clips": clips, "recordings": recordings, "labels": labels})
    return num_rows * rows[0].nbytes


def train_some(path: Path) -> None:
    """Train MEMORY_STEPS steps of the default head; run in a process of its own, to be watched."""
    fitter, config = fitter_of(path)
    data = fitter.data(config)
    head = Head(*data.store.maps.row_shape[:2], len(data.taxonomy), config.head)
    trained(head, drawn_steps(fitter, config, MEMORY_STEPS), MEMORY_STEPS)


def anonymous_memory(like: Path, folder: Path) -> tuple[float, float, float]:
    """Return peak anonymous MB of training on a small store and on one larger than memory, and its GB."""
    more_than_all = 1.2 * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    peaks, size = [], 0
    for num_rows in (4 * NUM_RECORDINGS, int(more_than_all / 179_200) // NUM_RECORDINGS * NUM_RECORDINGS):
        path = folder / f"{num_rows}.zarr"
        size = write_repeated_store(path, like, num_rows)
        peaks.append(peak_anonymous_mb([sys.executable, __file__, str(path)]))
    return peaks[0], peaks[1], size / 1e9


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


def on_the_fly_seconds_per_clip(
    store: FeatureStore, audio: Path, head_config: HeadConfig, *, fast: bool
) -> tuple[float, float]:
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
                    maps.clone(), labels, labels + 1,
                    torch.ones(len(maps), maps.shape[3], dtype=torch.bool),
                    torch.full((len(maps),), waveforms.shape[1]),
                )
            ]  # fmt: skip

    def epoch() -> None:
        num_channels, num_rows, _ = store.maps.row_shape
        trained(Head(num_channels, num_rows, num_classes, head_config), steps(), FLY_STEPS)

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


if __name__ == "__main__":
    train_some(Path(sys.argv[1]))
