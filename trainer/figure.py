"""A picture of a recording: what was heard, and what the run makes of it, frame by frame."""

from contextlib import closing
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from shared.audio import ClipDecoder, read_header
from shared.mel import LogMelImage, scaled_db
from trainer.predict import Predictor

MAX_SECONDS = 60.0
MAX_LANES = 10


def draw_recording(
    predictor: Predictor, path: Path, folders: dict[str, Path], truth: pd.DataFrame | None = None
) -> list[Path]:
    """Draw log-mel and the likeliest species' frame-wise probabilities, first minute only.

    folders: where it goes as png, as svg, or both. truth: species, start, stop in seconds; these
    events are underlined.

    Raises:
        ValueError: matplotlib is not installed, or the recording cannot be read.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise ValueError("pictures need matplotlib: pip install 'dawnchorus[report]'.") from error
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    log_mel, seconds = _log_mel(predictor, path)
    frames = _frames(predictor, path, seconds)
    strongest = np.argsort(-frames.max(axis=0))[:MAX_LANES]
    lanes = sorted(strongest, key=lambda column: int(frames[:, column].argmax()))
    figure, (top, bottom) = plt.subplots(
        2, 1, figsize=(11, 5.2), sharex=True, height_ratios=[1.1, 1], layout="constrained"
    )
    rate = predictor.ensemble.grid.sample_rate_hz
    top.imshow(log_mel, origin="lower", aspect="auto", cmap="magma", extent=(0, seconds, 0, 1))
    top.set_yticks([])
    top.set_ylabel(f"mel, 0 to {predictor.ensemble.mel.fmax_hz / 1000:g} kHz")
    top.set_title(f"{path.name}, first {seconds:g} s", loc="left")
    bottom.imshow(
        frames[:, lanes].T, aspect="auto", cmap="viridis", vmin=0, vmax=1, interpolation="nearest",
        extent=(0, len(frames) * predictor.ensemble.frame_hop / rate, len(lanes) - 0.5, -0.5),
    )  # fmt: skip
    bottom.set_yticks(range(len(lanes)), [predictor.ensemble.taxonomy.species[lane] for lane in lanes])
    bottom.set_xlabel("seconds")
    bottom.set_xlim(0, seconds)
    title = f"probability per frame ({predictor.ensemble.frame_hop / rate:g} s)"
    bottom.set_title(title + ("" if truth is None else "; orange: songs that are there"), loc="left")
    for row, lane in enumerate(lanes):
        for event in _events(truth, predictor.ensemble.taxonomy.species[lane]):
            bottom.plot(event, (row + 0.42, row + 0.42), color="tab:orange", linewidth=3)
    figure.colorbar(bottom.images[0], ax=[bottom], pad=0.01)
    paths = [folder / f"{path.stem}.{kind}" for kind, folder in folders.items()]
    for out in paths:
        out.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(out, dpi=110)
    plt.close(figure)
    return paths


def _events(truth: pd.DataFrame | None, species: str) -> list[tuple[float, float]]:
    if truth is None:
        return []
    mine = truth[truth["species"] == species]
    return list(zip(mine["start"], mine["stop"], strict=True))


def _log_mel(predictor: Predictor, path: Path) -> tuple[np.ndarray, float]:
    """Return the log-mel (M, frames) of the first minute, and its length in seconds."""
    grid = predictor.ensemble.grid
    decoder = ClipDecoder(path, read_header(path), grid)
    limit = int(MAX_SECONDS * grid.sample_rate_hz / grid.clip_samples)
    clips = [clip for clip, _ in zip(decoder, range(limit), strict=False)]
    image = LogMelImage(predictor.ensemble.mel, grid, torch.device("cpu"))
    waveforms = torch.from_numpy(np.stack([clip.samples for clip in clips]))
    power = image.power(waveforms)[..., : image.num_frames]
    # One reference for the whole picture: clip by clip, as the network sees it, it would be in steps.
    joined = power.permute(1, 0, 2).flatten(1).unsqueeze(0)
    log_mel = scaled_db(joined, predictor.ensemble.mel.top_db)[0].numpy()
    return log_mel, len(clips) * grid.clip_samples / grid.sample_rate_hz


def _frames(predictor: Predictor, path: Path, seconds: float) -> np.ndarray:
    """Return frame-wise probabilities (frames, K) of the first seconds."""
    num_frames = round(seconds / predictor.ensemble.frame_seconds)
    parts: list[np.ndarray] = []
    with closing(predictor.recording(path)) as pieces:  # type: ignore[type-var]
        for piece in pieces:
            parts.append(piece.frames)
            if sum(map(len, parts)) >= num_frames:
                break
    return np.concatenate(parts)[:num_frames]
