"""A build against what its stages cost alone, and the engines of the backbone against each other."""

import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from measuring import Numbers, cpu_seconds_each, median_seconds, show

from featurestore.build import Builder, store_attributes
from featurestore.plan import Plan, Source, make_plan
from featurestore.seen import SeenFiles
from featurestore.views import Views
from shared.audio import ClipDecoder, to_int16
from shared.backbone import BackboneConfig
from shared.clip_array import num_processors
from shared.embedder import Embedder
from shared.features import FeatureConfig
from shared.mel import MelConfig
from shared.metadata import read_metadata
from shared.store_writer import StoreWriter
from shared.timm_door import import_timm
from shared.weights import find_weights

CPU = torch.device("cpu")
BACKBONE = "tf_efficientnet_lite0"
RATE_HZ = 44_100  # most recorders'; decoding includes resampling
SECONDS = 30.0
FORMATS = {"ogg": ("OGG", "VORBIS"), "mp3": ("MP3", "MPEG_LAYER_III"),
           "flac": ("FLAC", "PCM_16"), "wav": ("WAV", "PCM_16")}  # fmt: skip
NUM_RECORDINGS = 72
BUILDS = {"torch fp32": 3, "openvino fp32": 4}  # the first is warm-up; of the others, BUILDS_EACH
BUILDS_EACH = 2


def write_recordings(folder: Path, num: int = NUM_RECORDINGS) -> None:
    """Write recordings of noise that swells and fades, a quarter of them in each format."""
    import soundfile

    (folder / "audio").mkdir(parents=True)
    rng = np.random.default_rng(0)
    lines = ["filename,primary_label"]
    num_samples = int(SECONDS * RATE_HZ)
    swell = 0.1 * (1 + np.sin(np.arange(num_samples) / RATE_HZ)).astype(np.float32)
    for number in range(num):
        suffix = list(FORMATS)[number % len(FORMATS)]
        kind, subtype = FORMATS[suffix]
        name = f"{number}.{suffix}"
        samples = swell * rng.standard_normal(num_samples, np.float32) * 0.3
        with soundfile.SoundFile(folder / "audio" / name, "w", RATE_HZ, 1, subtype, format=kind) as file:
            for first in range(0, num_samples, RATE_HZ):
                file.write(samples[first : first + RATE_HZ])
        lines.append(f"{name},{'ab'[number % 2]}")
    (folder / "meta.csv").write_text("\n".join(lines) + "\n")


def config_of(engine: str) -> FeatureConfig:
    """Return the demo's front end with an engine."""
    return FeatureConfig(
        mel=MelConfig(channels="repeat"), backbone=BackboneConfig(name=BACKBONE, engine=engine)
    )


def plan_of(folder: Path, config: FeatureConfig) -> Plan:
    """Return the plan of the recordings in a folder."""
    grid = config.clips.grid()
    metadata = read_metadata(folder / "meta.csv", grid, source="main", audio=folder / "audio")
    source = Source(metadata, folder / "audio")
    seen = SeenFiles(folder / "seen")
    folders = [source.audio] * len(metadata.recordings)
    plan = make_plan(
        metadata, folders, grid, shard_clips=config.store.shard_clips, known=None, seen=seen, tick=int
    )
    seen.close()
    return plan


def build(plan: Plan, embedder: Embedder, folder: Path, views: Views | None = None) -> float:
    """Build once; return wall seconds per clip, without the start of the program."""
    with tempfile.TemporaryDirectory(dir=folder) as name:
        builder = Builder(
            Path(name) / "s.zarr", embedder, shard_clips=embedder.config.store.shard_clips,
            with_waveforms=True, workers=num_processors(), views=views,
        )  # fmt: skip
        start = time.perf_counter()
        writer = builder.open(store_attributes(embedder, ["a", "b"], builder.views.attributes))
        builder.run(writer, plan, list(range(plan.num_shards)), lambda clips: None)
        builder.publish(writer, plan)
        return (time.perf_counter() - start) / plan.num_rows


class Stages:
    """Each stage of a build alone, on one core: CPU seconds per clip."""

    def __init__(self, plan: Plan, embedder: Embedder, folder: Path) -> None:
        self.plan, self.embedder, self.folder = plan, embedder, folder
        self.clips = np.stack([clip for clip, _ in self._decoded()])
        with torch.inference_mode():
            self.images = embedder.images.image(torch.from_numpy(self.clips[: self._batch]).float() / 32768)
        self.maps = embedder.embed(self.clips[: self._batch]).maps

    @property
    def _batch(self) -> int:
        return self.embedder.batch_clips

    def _decoded(self) -> list[tuple[np.ndarray, float]]:
        grid = self.embedder.grid
        return [
            to_int16(clip.samples)
            for number, path in enumerate(self.plan.paths)
            if path is not None
            for clip in ClipDecoder(path, self.plan.header_of(number), grid)
        ]

    def _log_mel(self) -> None:
        self.embedder.images.image(torch.from_numpy(self.clips[: self._batch]).float() / 32768)

    def _backbone(self) -> None:
        for maps in self.embedder.engine(self.images):
            maps.half().numpy()

    def _write(self) -> None:
        with tempfile.TemporaryDirectory(dir=self.folder) as name:
            builder = Builder(
                Path(name) / "s.zarr", self.embedder, shard_clips=512, with_waveforms=True, workers=1
            )
            writer: StoreWriter = builder.open(store_attributes(self.embedder, ["a", "b"]))
            arrays = {f"maps/{stage}": maps for stage, maps in self.maps.items()}
            arrays["waveforms"] = self.clips[: self._batch]
            writer.write_shard(0, (arrays for _ in range(512 // self._batch)))

    def cpu_seconds(self) -> dict[str, float]:
        """Return every stage's CPU seconds per clip, the median of five."""
        works: dict[str, tuple[Callable[[], object], int]] = {
            "decode": (self._decoded, len(self.clips)),
            "log-mel": (self._log_mel, self._batch),
            "backbone": (self._backbone, self._batch),
            "write": (self._write, 512),
        }
        with torch.inference_mode():
            return cpu_seconds_each(works)


class EagerEngine:
    """The backbone as timm makes it, in fp32: what the engines are compared with."""

    name = "eager"

    def __init__(self) -> None:
        model = import_timm().create_model(BACKBONE, pretrained=False).eval()
        model.load_state_dict(find_weights("pretrained", BACKBONE, {}).tensors)
        self.layers = torch.nn.Sequential(model.conv_stem, model.bn1, model.blocks)

    def __call__(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Return the last block's maps."""
        return [self.layers(images)]


def embedder_with(engine: str, precision: str = "fp32") -> Embedder:
    """Return an embedder with one stream a core."""
    config = config_of("torch" if engine == "eager" else engine)
    config = replace(config, backbone=replace(config.backbone, precision=precision))
    embedder = Embedder(config, CPU, streams=num_processors())
    if engine == "eager":
        embedder.engine = EagerEngine()
    return embedder


def backbone_rates(embedders: dict[str, Embedder]) -> dict[str, float]:
    """Return clips per second of the backbone alone, a stream on every core."""
    from concurrent.futures import ThreadPoolExecutor

    images = torch.rand(embedders["eager fp32"].batch_clips, 3, 224, 320)
    calls = 2

    def run(embedder: Embedder) -> None:
        with torch.inference_mode():
            for _ in range(calls):
                embedder.engine(images)

    with ThreadPoolExecutor(num_processors()) as pool:
        works = {
            name: partial(lambda e: list(pool.map(run, [e] * num_processors())), embedder)
            for name, embedder in embedders.items()
        }
        seconds = median_seconds(works)
    return {name: len(images) * calls * num_processors() / value for name, value in seconds.items()}


def builds() -> Numbers:
    """A build of all formats with each engine, beside its stages alone."""
    variants = {
        "eager fp32": ("eager", "fp32"), "torch fp32": ("torch", "fp32"), "torch bf16": ("torch", "bf16"),
        "openvino fp32": ("openvino", "fp32"), "openvino bf16": ("openvino", "bf16"),
    }  # fmt: skip
    embedders: dict[str, Embedder] = {}
    for name, (engine, precision) in variants.items():
        try:
            embedders[name] = embedder_with(engine, precision)
        except ValueError as missing:
            print(f"{name} left out: {missing}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_recordings(folder)
        plan = plan_of(folder, config_of("torch"))
        walls: dict[str, list[float]] = {name: [] for name in embedders}
        for repeat in range(max(BUILDS.values())):
            for name, embedder in embedders.items():
                if repeat < BUILDS.get(name, BUILDS_EACH):
                    wall = build(plan, embedder, folder)
                    walls[name] += [wall] * bool(repeat)  # the first is warm-up
        per_clip = {name: float(np.median(values)) for name, values in walls.items()}
        alone = {
            name: Stages(plan, embedders[name], folder).cpu_seconds()
            for name in ("torch fp32", "openvino fp32")
            if name in embedders
        }
    rates = backbone_rates(embedders)
    return _shown(plan.num_rows, per_clip, alone, rates)


def _shown(
    num_clips: int, per_clip: dict[str, float], alone: dict[str, dict[str, float]], rates: dict[str, float]
) -> Numbers:
    cores = num_processors()
    efficiency = {name: sum(stages.values()) / cores / per_clip[name] for name, stages in alone.items()}
    rows = [
        [name, *(f"{1e3 * value:.2f}" for value in stages.values()),
         f"{1e3 * sum(stages.values()) / cores:.2f}", f"{1e3 * per_clip[name]:.2f}",
         f"{efficiency[name]:.2f}"]
        for name, stages in alone.items()
    ]  # fmt: skip
    header = [
        "engine",
        "decode",
        "log-mel",
        "backbone",
        "write",
        f"sum / {cores} cores",
        "build, wall",
        "ratio",
    ]
    show(f"A build of {num_clips} clips in ogg, mp3, flac, wav at {RATE_HZ} Hz, ms per clip;"
         " stages: CPU time alone on one core", header, rows)  # fmt: skip
    eager, build_eager = rates["eager fp32"], per_clip["eager fp32"]
    rows = [
        [name, f"{rate:.1f}", f"{rate / eager:.2f}", f"{1 / per_clip[name]:.1f}",
         f"{build_eager / per_clip[name]:.2f}"]
        for name, rate in rates.items()
    ]  # fmt: skip
    show(f"{BACKBONE}, {cores} streams of one core",
         ["engine", "backbone clips/s", "x eager", "build clips/s", "x eager"], rows)  # fmt: skip
    numbers = {f"build.cpu_efficiency_{name.split()[0]}": value for name, value in efficiency.items()}
    best = "openvino fp32" if "openvino fp32" in efficiency else "torch fp32"
    numbers["build.cpu_efficiency"] = efficiency[best]
    for name in rates:
        key = name.replace(" ", "_")
        numbers[f"build.{key}_over_eager"] = rates[name] / eager
        numbers[f"build.{key}_end_to_end_over_eager"] = build_eager / per_clip[name]
    if "openvino fp32" in rates:
        numbers["build.openvino_over_eager"] = rates["openvino fp32"] / eager
    return numbers
