"""How well heads find songs in time: frame-wise quality on synthetic soundscapes with known truth.

`python tests/benchmarks/frames.py [--seeds 3] [--soundscapes 24] [--only NAME]`: makes the data, trains
every head on all recordings (clip labels only), and scores its frames on soundscapes: macro ROC-AUC over
segments of one second, and event-based F1, thresholds per species chosen on one half of the soundscapes
and scored on the other. An experiment, for docs/experiments.md; takes some minutes.
"""

import argparse
import statistics
import sys
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from measuring import show
from run import program
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_bipartite_matching

from shared.store import FeatureStore
from shared.taxonomy import Taxonomy
from trainer.config import LabelConfig
from trainer.data import ClipData, all_batches
from trainer.loop import to_device
from trainer.metrics import RankedScores
from trainer.run import load_run

SETTINGS = {
    f"{head}, {frequency}": [f"head.name={head}", f"head.frequency={frequency}"]
    for head in ("chrononet", "attention", "linear")
    for frequency in ("mean", "rows")
} | {
    "attention, rows, no mixup": ["mixup.probability=0"],
    "attention, rows, additive": ["mixup.kind=additive"],
    "attention, rows, no best frame": ["loss.frame_share=0"],
    "attention, rows, soft secondary": ["labels.secondary=soft"],
    "attention, rows, independent": ["sampler.drawing=independent"],
}
COLLARS = (0.5, 0.2)  # seconds

Events = dict[int, list[tuple[float, float]]]  # of one species: by soundscape, onsets and offsets in seconds


def make_data(folder: Path, num_soundscapes: int) -> tuple[Path, Path, pd.DataFrame]:
    """Return the store of recordings, the store of soundscapes, and the events of the latter."""
    program("featurestore", "synth", folder / "data", "--soundscapes", num_soundscapes)
    data = folder / "data"
    scapes = sorted(path.name for path in (data / "soundscapes").iterdir())
    pd.DataFrame({"filename": scapes, "primary_label": "nocall"}).to_csv(folder / "scapes.csv", index=False)
    stores = folder / "s.zarr", folder / "scapes.zarr"
    for metadata, audio, store in (
        (data / "train_metadata.csv", data / "train_audio", stores[0]),
        (folder / "scapes.csv", data / "soundscapes", stores[1]),
    ):
        program("featurestore", "build", "--config", "configs/demo.toml", "--metadata", metadata,
                "--audio", audio, "--out", store)  # fmt: skip
    return *stores, pd.read_csv(data / "truth.csv")


@torch.inference_mode()
def frame_probabilities(run: Path, scapes: FeatureStore) -> np.ndarray:
    """Return probabilities (soundscapes, frames, K) on the true frame grid; clips follow each other."""
    opened = load_run(run)
    data = ClipData(scapes, opened.taxonomy, LabelConfig())
    rows = np.lexsort((scapes.clips["start"].to_numpy(), data.recording_of_row))
    parts = []
    for batch in all_batches(data, rows):
        moved = to_device(batch, torch.device("cpu"))
        parts.append(opened.model(moved.maps, moved.mask).frame_wise.sigmoid().numpy())
    frames = np.concatenate(parts)
    return frames.reshape(len(scapes.recordings), -1, frames.shape[2])


def segment_roc_auc(frames: np.ndarray, frame_seconds: float, truth: list[Events]) -> float:
    """Return the macro ROC-AUC of segments of one second: the best of a segment's frames."""
    each = round(1 / frame_seconds)
    num_scapes, num_frames, num_classes = frames.shape
    scores = frames.reshape(num_scapes, num_frames // each, each, num_classes).max(axis=2)
    present = np.zeros(scores.shape, np.float32)
    for column, events in enumerate(truth):
        for scape, spans in events.items():
            for onset, offset in spans:
                present[scape, int(onset) : int(np.ceil(offset)), column] = 1
    flat = scores.reshape(-1, num_classes), present.reshape(-1, num_classes)
    return float(RankedScores(*flat, np.ones_like(flat[1])).figures(np.ones(len(flat[0])))[0])


def detected(probabilities: np.ndarray, threshold: float, frame_seconds: float) -> list[tuple[float, float]]:
    """Return onsets and offsets of the runs of frames at or over the threshold."""
    over = np.concatenate([[0], (probabilities >= threshold).astype(int), [0]])
    edges = np.flatnonzero(np.diff(over)) * frame_seconds
    return list(zip(edges[::2], edges[1::2], strict=True))


def matches(found: list[tuple[float, float]], there: list[tuple[float, float]], collar: float) -> int:
    """Count events found: onset within the collar, offset within it or half the event's length.

    At most one detection an event, as many as can be matched: the rule of sed_eval and DCASE.
    """
    if not found or not there:
        return 0
    one, two = np.array(found), np.array(there)
    onset = np.abs(one[:, None, 0] - two[None, :, 0]) <= collar
    allowed = np.maximum(collar, 0.5 * (two[:, 1] - two[:, 0]))
    offset = np.abs(one[:, None, 1] - two[None, :, 1]) <= allowed[None]
    return int((maximum_bipartite_matching(csr_array(onset & offset), perm_type="column") >= 0).sum())


def counts(
    frames: np.ndarray, events: Events, scapes: range, threshold: float, frame_seconds: float, collar: float
) -> np.ndarray:
    """Return matched, detected and true events of one species (its frames: soundscapes, T)."""
    total = np.zeros(3)
    for scape in scapes:
        found, there = detected(frames[scape], threshold, frame_seconds), events.get(scape, [])
        total += matches(found, there, collar), len(found), len(there)
    return total


def f1(total: np.ndarray) -> float:
    """Return the F1 of matched, detected and true."""
    return float(2 * total[0] / max(total[1] + total[2], 1))


def event_f1(frames: np.ndarray, frame_seconds: float, truth: list[Events], collar: float) -> float:
    """Return the F1 over all events of the second half, thresholds per species from the first."""
    half = len(frames) // 2
    total = np.zeros(3)
    for column, events in enumerate(truth):
        mine = frames[:, :, column]
        of = partial(counts, mine, events, frame_seconds=frame_seconds, collar=collar)
        candidates = np.quantile(mine[:half], np.linspace(0.5, 0.999, 60))
        best = max(candidates, key=lambda threshold: f1(of(range(half), threshold)))
        total += of(range(half, len(frames)), best)
    return f1(total)


def main() -> None:
    """Make the data, train, score, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--soundscapes", type=int, default=24)
    parser.add_argument("--only", default="", help="Settings whose name begins like this.")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        store, scapes_path, table = make_data(folder, chosen.soundscapes)
        scapes = FeatureStore(scapes_path)
        species = Taxonomy(tuple(FeatureStore(store).attributes["taxonomy"])).species
        order = {file: place for place, file in enumerate(scapes.recordings["filename"])}
        truth: list[Events] = [{} for _ in species]
        for event in table.itertuples():
            spans = truth[species.index(event.species)].setdefault(order[event.filename], [])
            spans.append((event.start, event.stop))
        frame_seconds = scapes.frame_hop / 32_000
        rows = []
        for title, settings in SETTINGS.items():
            if not title.startswith(chosen.only):
                continue
            found = []
            for seed in range(chosen.seeds):
                out = folder / f"{title}-{seed}".replace(" ", "")
                options = [part for text in [*settings, f"fit.seed={seed}"] for part in ("--set", text)]
                options += ["--config", "configs/demo.toml", "--fold", "none"]
                program("trainer", "fit", "--features", store, "--out", out, *options)
                frames = frame_probabilities(out, scapes)
                scores = [segment_roc_auc(frames, frame_seconds, truth)]
                scores += [event_f1(frames, frame_seconds, truth, collar) for collar in COLLARS]
                found.append(scores)
            cells = [
                f"{statistics.fmean(c):.3f} ({statistics.pstdev(c):.3f})" for c in zip(*found, strict=True)
            ]
            rows.append([title, *cells])
            print(*rows[-1], file=sys.stderr, flush=True)
    header = ["head", "segments of 1 s, ROC-AUC", "event F1, 500 ms", "event F1, 200 ms"]
    show(f"{len(table)} songs in {len(order)} soundscapes, mean (sd) over {chosen.seeds} seeds", header, rows)


if __name__ == "__main__":
    main()
