"""The model card of an exported model: what it learned from, how good it is, what it is not for."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from shared.documents import UNREADABLE
from trainer import training_data as data
from trainer.export import Source
from trainer.exported import IMAGE_GRAPH, PRIOR, WAVEFORM_GRAPH, WEIGHTS
from trainer.folded import head_name
from trainer.metrics import FIGURES
from trainer.out_of_fold import FILE as OUT_OF_FOLD
from trainer.out_of_fold import read_out_of_fold
from trainer.training_data import TrainingData
from trainer.whole_model import INPUT_SAMPLES

TITLES = {"macro_roc_auc": "macro ROC-AUC", "cmap": "cmAP", "top1": "top-1"}
SHOWN = 10  # rows of a table of counts

EXAMPLE = """\
import csv
import numpy, onnxruntime, soundfile

with open("taxonomy.csv", newline="") as file:
    species = [row["primary_label"] for row in csv.DictReader(file)]
samples, rate = soundfile.read("recording.wav", dtype="float32", always_2d=True)
assert rate == RATE, "resample it first"
samples = samples.mean(axis=1)
session = onnxruntime.InferenceSession("GRAPH")
for start in range(0, len(samples), SIZE):
    part = samples[start : start + SIZE]
    window = numpy.pad(part, (0, SIZE - len(part)))
    inputs = {"waveform": window[None], "VALID": numpy.array([len(part)])}
    clip_wise, frame_wise = session.run(["clip_wise", "frame_wise"], inputs)
    best = clip_wise[0].argmax()
    print(f"{start / rate:8.1f} s  {species[best]}  {clip_wise[0, best]:.3f}")"""


def model_card(source: Source, facts: dict[str, Any], training: TrainingData) -> str:
    """Return the card as Markdown."""
    parts = [
        _head(source, facts),
        _use(source, facts),
        _data(source, training),
        _scores(source),
        _calibration(source),
        _limits(source, training),
        _made(source, facts),
    ]
    return "\n\n".join(parts) + "\n"


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in row) + " |" for row in lines)


def _head(source: Source, facts: dict[str, Any]) -> str:
    num, heads = len(source.ensemble.taxonomy), facts["heads"]
    name = head_name(source.path)
    averaged = f" Logits of {heads} folds' heads are averaged." if heads > 1 else ""
    seconds = source.ensemble.segment_seconds
    return (
        f"# {facts['of']}\n\n"
        f"Tells {num} species in {seconds:g}-second windows of sound, and when in the window they call. "
        f"Head: {name}. Backbone: {facts['backbone']}.{averaged} Made by Dawnchorus' `trainer export`."
    )


def _use(source: Source, facts: dict[str, Any]) -> str:
    grid = source.features.clips.grid()
    size, rate, frames = grid.clip_samples, grid.sample_rate_hz, facts["frames"]
    example = EXAMPLE.replace("GRAPH", WAVEFORM_GRAPH).replace("VALID", INPUT_SAMPLES)
    example = example.replace("RATE", str(rate)).replace("SIZE", str(size))
    num, hop = len(source.ensemble.taxonomy), source.ensemble.frame_seconds
    rows = [
        ["`waveform`", f"(B, {size}) float32, -1..1", f"{WAVEFORM_GRAPH}: mono, {rate} Hz, padded with 0"],
        ["`image`", f"(B, {', '.join(map(str, facts['inputs']['image'][1:]))}) float32",
         f"{IMAGE_GRAPH}: what config.toml's [mel] makes of it"],
        [f"`{INPUT_SAMPLES}`", "(B,) int64", "samples of sound; frames behind them count for nothing"],
        ["`clip_wise`", f"(B, {num}) float32", "probability per species of taxonomy.csv, calibrated"],
        ["`frame_wise`", f"(B, {frames}, {num}) float32", f"the same per frame of {hop:g} s"],
        ["`clip_logits`, `frame_logits`", "the same shapes", "before calibration"],
    ]  # fmt: skip
    return (
        "## Use\n\nWith Dawnchorus:\n\n```\ntrainer predict THIS_FOLDER --audio recordings --out found.csv "
        "--events csv\n"
        "```\n\nWithout it, only with ONNX Runtime (`pip install onnxruntime soundfile`), in this folder:\n\n"
        f"```python\n{example}\n```\n\n{table(['name', 'shape', 'what'], rows)}"
    )


def _data(source: Source, training: TrainingData) -> str:
    by_species, num = training.counts("primary_label"), len(training.recordings)
    clips = "" if training.num_clips is None else f" with {training.num_clips} clips"
    counts = [count for _, count in by_species]
    text = ["## Training data"]
    if not source.is_finished:
        text.append("**The training was not finished**: this is the model of its last whole epoch.")
    text.append(
        f"{num} recordings{clips}; labels hold for whole recordings, without times, where metadata gave "
        "none. By "
        f"primary label {min(counts)} to {max(counts)} recordings a species; shares are in {PRIOR}."
    )
    if training.num_soft:
        text.append(f"A model labelled {training.num_soft} of the recordings, segment by segment.")
    text.append(table(["source", "recordings"], training.counts("source")))
    if training.not_attributed:
        text.append(
            "**Licences and authors could not be counted** when the model was exported. Export it again with "
            "`--features STORE`."
        )
        return "\n\n".join(text)
    authors = training.counts("author")
    named = [name for name, _ in authors if name != data.NOT_GIVEN]
    text += [
        table(["licence", "recordings"], training.counts("license")),
        f"By {len(named)} authors; each recording with author and licence is in {data.FILE}. Those of the "
        "most:",
        table(["author", "recordings"], authors[:SHOWN]),
    ]
    return "\n\n".join(text)


def _scores(source: Source) -> str:
    if not (source.path / OUT_OF_FOLD).is_file():
        return "## Scores\n\nNone: nothing was held out (`--fold none`). How good it is, is not known."
    found = read_out_of_fold(source.path)
    scores = found.scores().table(interval=True)
    rows = [
        [TITLES[name], f"{scores[name]:.3f}", f"{scores[f'{name}_low']:.3f} to {scores[f'{name}_high']:.3f}"]
        for name in FIGURES
    ]
    folds = ", ".join(map(str, found.folds))
    config = source.run.train.split
    apart = (
        "recordings of one author stay on one side" if config.by_author else "authors may be on both sides"
    )
    lines = [
        "## Scores",
        f"On {scores['rows_scored']} recordings that the head that scored them never saw (fold {folds} of "
        f"{config.folds}; {apart}); {scores['classes_scored']} species had one to find. Intervals: 95 %, by "
        "bootstrap over recordings.",
        table(["figure", "value", "interval"], rows),
        _leakage(source.path),
        "A whole recording is easier than five seconds of a soundscape: score it there with `trainer score`.",
    ]
    return "\n\n".join(line for line in lines if line)


def _leakage(path: Path) -> str:
    """Say what both sides of the split have in common."""
    try:
        found = json.loads((path / "leakage.json").read_text(encoding="utf-8"))
        splits = [found] if "trained" in found else list(found.values())
        kinds = ("same_bytes", "same_xc_id", "same_author", "near_duplicates")
        shared = {kind: sum(int(one[kind]["recordings"]) for one in splits) for kind in kinds}
    except UNREADABLE:
        return ""
    words = {
        "same_bytes": "the same file", "same_xc_id": "the same xeno-canto id", "same_author": "the same "
        "author",
        "near_duplicates": "a near duplicate",
    }  # fmt: skip
    said = ", ".join(f"{words[name]} {count}" for name, count in shared.items())
    return f"Held-out recordings that have on the training side: {said}."


def _calibration(source: Source) -> str:
    facts = source.ensemble.calibrations[0].facts
    if not facts:
        return (
            "## Calibration\n\nNone (`trainer calibrate` was not run): probabilities are the head's own, "
            "and 0.5 is "
            "the threshold of every species."
        )
    lines = [
        "## Calibration",
        f"By Platt scaling per species, drawn to all species', on {facts['recordings']} recordings: expected "
        f"calibration error {facts['ece_before']:.4f} before, {facts['ece_after']:.4f} after, on recordings "
        "not "
        f"fitted on. Thresholds ({facts['thresholds']}) are in calibration.json.",
    ]
    rows = [
        [kind, f"{one['events_per_hour']:.0f}", f"{60 * one['hours']:.0f}"]
        for kind, one in facts.get("no_call", {}).items()
    ]
    if rows:
        lines += [
            "What it hears at these thresholds where nobody calls:",
            table(["sound", "false events an hour", "minutes heard"], rows),
        ]
    return "\n\n".join(lines)


def _limits(source: Source, training: TrainingData) -> str:
    low, high = source.features.mel.fmin_hz, source.features.mel.fmax_hz
    lines = [
        "## Intended use and limits",
        "To sift recordings for what a person then listens to, and to count calls where a sample of them was "
        "checked by ear.",
        f"- It knows {len(source.ensemble.taxonomy)} species. Any other sound is taken for one of them, or "
        "for none.",
        f"- It hears {low:g} to {high:g} Hz.",
        "- A probability is calibrated for recordings like the training ones; another microphone, place or "
        "season "
        "moves it. Set thresholds by recordings of your own.",
        "- Absence of a detection is no absence of the species.",
    ]
    num = training.non_commercial()
    if num:
        lines.append(
            f"- {num} training recordings are licensed for non-commercial use only; whether that binds the "
            "model "
            "is for you to settle before commercial use."
        )
    return lines[0] + "\n\n" + lines[1] + "\n\n" + "\n".join(lines[2:])


def _made(source: Source, facts: dict[str, Any]) -> str:
    worst = max(facts["largest_difference_from_torch"].values())
    software = ", ".join(f"{name} {version}" for name, version in facts["software"].items())
    return (
        f"## Made with\n\n{software}. Settings: config.toml; weights: {WEIGHTS}; backbone before training: "
        "sha256 "
        f"{facts['backbone_weights_sha256'][:16]}... . Both graphs' probabilities were within {worst:.0e} of "
        "torch's when they were written."
    )
