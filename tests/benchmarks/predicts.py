"""A prediction from ogg files to its CSV, against what its stages cost alone; memory over a day."""

import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from measuring import Numbers, cpu_seconds_each, peak_anonymous_mb, show

from shared.audio import ClipDecoder, read_header, to_int16
from shared.backbone import BackboneConfig
from shared.clip_array import num_processors
from shared.embedder import Embedder
from shared.features import FeatureConfig
from shared.mel import MelConfig
from shared.taxonomy import Taxonomy
from trainer.calibration import no_calibration
from trainer.config import HeadConfig
from trainer.ensemble import Ensemble
from trainer.events import EventFinder, EventRules
from trainer.heads import Head
from trainer.opening import segment_grid
from trainer.parts import Parts
from trainer.predict import Predictor
from trainer.prediction_job import PredictionJob
from trainer.recordings import Recording, find_recordings
from trainer.scorers import HeadsOnBackbone, Logits
from trainer.stitching import Stitcher
from trainer.submission import Layout

CPU = torch.device("cpu")
RATE_HZ = 32_000
SECONDS = 240.0  # a soundscape of BirdCLEF
NUM_RECORDINGS = 8
NUM_SPECIES = 182
LITE0, V2_S = "tf_efficientnet_lite0", "tf_efficientnetv2_s.in21k"
VARIANTS = {  # backbone, its weights, engine, precision
    "lite0 torch fp32": (LITE0, "pretrained", "torch", "fp32"),
    "lite0 onnxruntime fp32": (LITE0, "pretrained", "onnxruntime", "fp32"),
    "lite0 openvino fp32": (LITE0, "pretrained", "openvino", "fp32"),
    "lite0 openvino bf16": (LITE0, "pretrained", "openvino", "bf16"),
    "v2_s openvino fp32": (V2_S, "random", "openvino", "fp32"),
    "v2_s openvino bf16": (V2_S, "random", "openvino", "bf16"),
}
NEEDED_PER_S = 52_800 / 7200  # windows of BirdCLEF 2024's test, in its two hours


def write_soundscapes(folder: Path, num: int, seconds: float, suffix: str = "ogg") -> Path:
    """Write recordings of noise that swells and fades."""
    import soundfile

    kind, subtype = {"ogg": ("OGG", "VORBIS"), "flac": ("FLAC", "PCM_16")}[suffix]
    rng = np.random.default_rng(0)
    block = 0.1 * rng.standard_normal(10 * RATE_HZ, np.float32)
    block *= 0.3 * (1.2 + np.sin(np.arange(len(block)) / RATE_HZ)).astype(np.float32)
    folder.mkdir(parents=True)
    for number in range(num):
        name = folder / f"{number}.{suffix}"
        with soundfile.SoundFile(name, "w", RATE_HZ, 1, subtype, format=kind) as file:
            for first in range(0, int(seconds * RATE_HZ), len(block)):
                file.write(np.roll(block, 1000 * number)[: int(seconds * RATE_HZ) - first])
    return folder


def ensemble_of(backbone: str, weights: str, engine: str, precision: str) -> Ensemble:
    """Return an attention head of chance weights for 182 species behind a backbone."""
    config = FeatureConfig(
        mel=MelConfig(channels="repeat"),
        backbone=BackboneConfig(name=backbone, weights=weights, engine=engine, precision=precision),
    )
    embedder = Embedder(config, CPU, streams=num_processors())
    stage = embedder.stages[0]
    num_channels, num_rows, _ = embedder.map_shapes[stage]
    head = Head(num_channels, num_rows, NUM_SPECIES, HeadConfig())
    taxonomy = Taxonomy(tuple(f"species{number}" for number in range(NUM_SPECIES)))
    prior = np.full(NUM_SPECIES, 1 / NUM_SPECIES, np.float32)
    scorer = HeadsOnBackbone(embedder, stage, [head], [0])
    return Ensemble([scorer], [taxonomy], [no_calibration(NUM_SPECIES)], prior, segment_grid(config))


def layout_of(ensemble: Ensemble) -> Layout:
    """Return the rows' form, without a sample submission."""
    return Layout(ensemble.taxonomy, ensemble.prior, ensemble.segment_seconds, None)


def predict(ensemble: Ensemble, recordings: list[Recording]) -> float:
    """Predict once; return wall seconds per window, without the start of the program."""
    with tempfile.TemporaryDirectory() as name:
        out = Path(name) / "submission.csv"
        parts = Parts(out)
        parts.open({}, out, overwrite=False)
        start = time.monotonic()
        job = PredictionJob(
            Predictor(ensemble), recordings, out, layout_of(ensemble), parts, EventRules(),
            ensemble.threshold, start,
        )  # fmt: skip
        job.prepare()
        num_windows = job.num_windows
        report = job.run(lambda windows: None, lambda: None)
        seconds = time.monotonic() - start
        parts.close()
        assert report.num_rows == num_windows == len(out.read_bytes().splitlines()) - 1
    return seconds / num_windows


class Stages:
    """Each stage of a prediction alone, on one core: CPU seconds per window."""

    def __init__(self, ensemble: Ensemble, recordings: list[Recording]) -> None:
        self.ensemble, self.recordings = ensemble, recordings
        (self.scorer,) = ensemble.scorers
        self.size = self.scorer.batch_clips
        self.waveforms = np.stack(self._decoded()[: self.size])
        self.valid = np.full(self.size, self.waveforms.shape[1])
        self.images = self.scorer.images(self.waveforms)
        self.logits = ensemble.score(self.waveforms, self.valid, 1)

    def _decoded(self) -> list[np.ndarray]:
        path = self.recordings[0].path
        return [
            to_int16(clip.samples)[0] for clip in ClipDecoder(path, read_header(path), self.ensemble.grid)
        ]

    def _score(self) -> None:
        self.scorer(self.images, self.valid)

    def _write(self) -> None:
        """Stitch, and make rows and events, of one recording."""
        ensemble, size = self.ensemble, self.waveforms.shape[1]
        stitcher = Stitcher(ensemble.grid, ensemble.frame_hop, NUM_SPECIES)
        finder = EventFinder(ensemble.taxonomy, ensemble.threshold, ensemble.frame_seconds, EventRules())
        layout, num = layout_of(ensemble), int(SECONDS * RATE_HZ) // size
        for start in range(0, num, self.size):
            count = min(self.size, num - start)
            logits = Logits(self.logits.clip_wise[:count], self.logits.frame_wise[:count])
            for place in range(count):
                begin = (start + place) * size
                stitcher.add(begin, size, logits.clip_wise[place], logits.frame_wise[place])
            found = stitcher.take((start + count) * size)
            layout.rows(self.recordings[0], found.first_segment, found.segments, found.valid_samples, size)
            finder.add(found.first_frame, found.frames)

    def cpu_seconds(self) -> dict[str, float]:
        """Return every stage's CPU seconds per window, the median of five."""
        num = int(SECONDS * RATE_HZ) // self.waveforms.shape[1]
        works: dict[str, tuple[Callable[[], object], int]] = {
            "decode": (self._decoded, num),
            "log-mel": (partial(self.scorer.images, self.waveforms), self.size),
            "backbone, head": (self._score, self.size),
            "rows, events": (self._write, num),
        }
        return cpu_seconds_each(works)


def predicts() -> Numbers:
    """Predictions of 4-minute ogg files with each engine, beside their stages alone."""
    ensembles: dict[str, Ensemble] = {}
    for name, variant in VARIANTS.items():
        try:
            ensembles[name] = ensemble_of(*variant)
        except ValueError as missing:
            print(f"{name} left out: {missing}")
    with tempfile.TemporaryDirectory() as folder:
        recordings = find_recordings(write_soundscapes(Path(folder) / "audio", NUM_RECORDINGS, SECONDS))
        walls: dict[str, list[float]] = {name: [] for name in ensembles}
        for repeat in range(4):
            for name, ensemble in ensembles.items():
                wall = predict(ensemble, recordings[: None if repeat else 2])
                walls[name] += [wall] * bool(repeat)  # the first is warm-up, and shorter
        alone = {name: Stages(one, recordings).cpu_seconds() for name, one in ensembles.items()}
    per_window = {name: float(np.median(values)) for name, values in walls.items()}
    cores = num_processors()
    bound = {name: sum(stages.values()) / cores for name, stages in alone.items()}
    rows = [
        [name, *(f"{1e3 * value:.2f}" for value in stages.values()), f"{1e3 * bound[name]:.2f}",
         f"{1e3 * per_window[name]:.2f}", f"{bound[name] / per_window[name]:.2f}",
         f"{1 / per_window[name]:.1f}", f"{1 / per_window[name] / NEEDED_PER_S:.1f}"]
        for name, stages in alone.items()
    ]  # fmt: skip
    header = [
        "backbone and engine", "decode", "log-mel", "backbone, head", "rows, events", f"sum / {cores} cores",
        "wall", "ratio", "windows/s", "x needed",
    ]  # fmt: skip
    show(f"Predicting {NUM_RECORDINGS} ogg files of {SECONDS:g} s, {NUM_SPECIES} species, from disk to CSV; "
         "ms per window; stages: CPU time alone on one core", header, rows)  # fmt: skip
    numbers = {}
    for name in per_window:
        key = name.removesuffix(" fp32").replace(" ", "_")
        numbers[f"predict.{key}_windows_per_s"] = 1 / per_window[name]
        numbers[f"predict.{key}_efficiency"] = bound[name] / per_window[name]
    return numbers


def predict_memory(program: Callable[..., float], build_store: Callable[..., Path]) -> Numbers:
    """Peak anonymous memory of predicting one recording of ten minutes, and one of a day."""
    peaks = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        store = build_store(folder)
        program("trainer", "fit", "--features", store, "--config", "configs/demo.toml", "--out",
                folder / "run", "--fold", "none", "--set", "fit.epochs=1")  # fmt: skip
        for title, hours in (("10 minutes", 1 / 6), ("24 hours", 24.0)):
            audio = write_soundscapes(folder / title, 1, 3600 * hours, "flac")
            arguments = ["predict", folder / "run", "--audio", audio, "--out", folder / f"{title}.csv",
                         "--events", "csv", "--frames", folder / f"frames {title}",
                         "--overlap", "0.5"]  # fmt: skip
            code = "from trainer.cli import main; main()"
            start = time.perf_counter()
            peaks[title] = peak_anonymous_mb([sys.executable, "-c", code, *map(str, arguments)])
            print(f"{title}: {time.perf_counter() - start:.0f} s")
    show("Peak anonymous memory of a prediction, windows that overlap by half", ["recording", "MB"],
         [[title, f"{peak:.0f}"] for title, peak in peaks.items()])  # fmt: skip
    short, day = peaks.values()
    return {
        "predict.memory_10_minutes_mb": short,
        "predict.memory_day_mb": day,
        "predict.memory_day_over_10_minutes": day / short,
    }
