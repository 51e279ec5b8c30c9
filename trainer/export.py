"""Write an exported model: graphs, weights, config, calibration, prior, model card."""

import csv
import hashlib
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from shared.audio import FULL_SCALE
from shared.features import FeatureConfig
from shared.mel import LogMelImage
from shared.onnx_graph import OPSET, need_package, onnx_bytes, onnx_session
from shared.taxonomy import Taxonomy, write_taxonomy
from trainer.calibration import write_calibration
from trainer.ensemble import Ensemble
from trainer.exported import IMAGE_GRAPH, OPENVINO_GRAPH, PRIOR, WAVEFORM_GRAPH, WEIGHTS
from trainer.opening import Opening, members_of, open_ensemble
from trainer.run import Run, read_facts, software_versions, write_config, write_facts, write_tensors
from trainer.scorers import HeadsOnBackbone
from trainer.whole_model import INPUT_SAMPLES, OUTPUTS, WaveformModel, WholeModel

MAX_DIFFERENCE = 1e-4  # of probabilities, between a graph and torch
CHECKED_CLIPS = 16
MODEL_FILES = (WEIGHTS, IMAGE_GRAPH, WAVEFORM_GRAPH, OPENVINO_GRAPH, "model.bin")


@dataclass(frozen=True)
class Source:
    """A run that is to be exported, opened; members: the run itself, or those of its folds."""

    path: Path
    members: list[Run]
    ensemble: Ensemble
    model: WholeModel
    features: FeatureConfig

    @property
    def run(self) -> Run:
        """The first member; of folds all are alike but for their weights and split."""
        return self.members[0]

    @property
    def is_finished(self) -> bool:
        """Whether the training, and that of all folds, came to its end."""
        return all(member.facts.get("finished") for member in self.members)


def open_source(path: Path, weights: str | None) -> Source:
    """Open a run, or all folds of one, as one model on the CPU in fp32.

    Raises:
        ValueError: no run, an exported model, or another backbone's weights.
    """
    if read_facts(path).get("kind") == "export":
        raise ValueError(f"{path} is an exported model already; copy it.")
    members = members_of(path)
    opening = Opening(torch.device("cpu"), weights, engine="torch", precision="fp32")
    ensemble = open_ensemble([path], opening)
    scorers = [one for one in ensemble.scorers if isinstance(one, HeadsOnBackbone)]
    stage = scorers[0].stage
    model = WholeModel(
        [one.embedder.backbone for one in scorers], [head for one in scorers for head in one.heads],
        ensemble.calibrations[0], map_hop=scorers[0].map_hop,
        num_map_frames=scorers[0].embedder.map_shapes[stage][2],
    )  # fmt: skip
    features = members[0].features
    # The weights lie beside it, and it is fp32 whatever the features were.
    backbone = replace(features.backbone, weights=WEIGHTS, engine="auto", precision="fp32", stages=(stage,))
    return Source(path, members, ensemble, model, replace(features, backbone=backbone))


def write_export(
    source: Source, folder: Path, *, openvino: bool, say: Callable[[str], object]
) -> dict[str, Any]:
    """Write everything but the model card and the attribution into a folder; return run.json's facts.

    Raises:
        ValueError: a package is missing, or a graph computes something else than torch.
    """
    need_package("onnxruntime", "checking the graphs", "pip install 'dawnchorus[onnx]'")
    if openvino:
        need_package("openvino", "--openvino", "pip install 'dawnchorus[openvino]'")
    taxonomy, run = source.ensemble.taxonomy, source.run
    write_config(folder, source.features, run.train, run.tune)
    write_taxonomy(taxonomy, folder / "taxonomy.csv")
    write_calibration(source.ensemble.calibrations[0], taxonomy, folder / "calibration.json")
    _write_prior(source.ensemble.prior, taxonomy, folder / PRIOR)
    tensors = {name: tensor.contiguous().clone() for name, tensor in source.model.state_dict().items()}
    write_tensors(folder / WEIGHTS, tensors)
    clips = _random_clips(source.features, CHECKED_CLIPS)
    samples = _valid_samples(source.features, CHECKED_CLIPS)
    peaks = clips.abs().amax(dim=1, keepdim=True).clamp_min(1 / FULL_SCALE)
    image = LogMelImage(source.features.mel, source.features.clips.grid(), torch.device("cpu"))(clips / peaks)
    waveforms = WaveformModel(source.model, source.features)
    checks = {}
    for name, module, values in (
        (IMAGE_GRAPH, source.model, {"image": image}),
        (WAVEFORM_GRAPH, waveforms, {"waveform": clips}),
    ):
        checks[name] = _write_graph(module, values | {INPUT_SAMPLES: samples}, folder / name)
        say(f"{name}: {checks[name]:.1e} from torch at most, over {CHECKED_CLIPS} clips of noise")
    if openvino:
        _write_openvino(folder)
        say(f"{OPENVINO_GRAPH}: {IMAGE_GRAPH} as OpenVINO's own")
    with torch.inference_mode():
        frames = source.model(image[:1], samples[:1]).frame_wise.shape[1]
    facts = _facts(source, folder, frames, checks)
    write_facts(folder, facts)
    return facts


def _facts(source: Source, folder: Path, frames: int, checks: dict[str, float]) -> dict[str, Any]:
    given, model = source.run.facts, source.model
    grid = source.features.clips.grid()
    return {
        "kind": "export",
        "of": source.path.resolve().name,
        "backbone": source.features.backbone.name,
        "backbone_weights_sha256": given["fingerprint_of"]["backbone"]["weights"],
        "stage": given["stage"],
        "map_shape": given["map_shape"],
        "frame_hop": given["frame_hop"],
        "backbones": len(model.backbones),
        "heads": len(model.heads),
        "frames": frames,
        "inputs": {
            "waveform": ["batch", grid.clip_samples],
            "image": ["batch", 3, source.features.mel.num_mels, source.features.mel.num_frames(grid)],
            INPUT_SAMPLES: ["batch"],
        },
        "outputs": list(OUTPUTS),
        "opset": OPSET,
        "largest_difference_from_torch": checks,
        "sha256": {
            name: hashlib.sha256((folder / name).read_bytes()).hexdigest()
            for name in MODEL_FILES
            if (folder / name).is_file()
        },
        "software": software_versions(),
    }


def _write_prior(prior: np.ndarray, taxonomy: Taxonomy, path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(["primary_label", "prior"])
        rows.writerows([code, f"{share:.9g}"] for code, share in zip(taxonomy.species, prior, strict=True))


def _random_clips(features: FeatureConfig, num_clips: int) -> Tensor:
    """Return noise of many colours and levels (B, S), one a silence."""
    grid, rng = features.clips.grid(), np.random.default_rng(0)
    spectra = np.fft.rfft(rng.standard_normal((num_clips, grid.clip_samples)))
    tilt = rng.uniform(-1.0, 0.0, (num_clips, 1))
    clips = np.fft.irfft(spectra * np.arange(1, spectra.shape[1] + 1) ** tilt, grid.clip_samples)
    clips *= 10 ** rng.uniform(-3, -0.1, (num_clips, 1)) / np.abs(clips).max(axis=1, keepdims=True)
    clips[0] = 0
    return torch.from_numpy(np.rint(clips * FULL_SCALE).astype(np.float32) / FULL_SCALE)


def _valid_samples(features: FeatureConfig, num_clips: int) -> Tensor:
    return torch.linspace(1, features.clips.grid().clip_samples, num_clips).long()


def _write_graph(module: nn.Module, inputs: dict[str, Tensor], path: Path) -> float:
    """Write a graph; return how far its probabilities are from torch's at most.

    Raises:
        ValueError: too far.
    """
    examples = {name: value[:2] for name, value in inputs.items()}  # one would make the batch a constant
    path.write_bytes(onnx_bytes(module, examples, OUTPUTS, any_batch=True))
    found = onnx_session(path, torch.get_num_threads()).run(
        list(OUTPUTS[:2]), {name: value.numpy() for name, value in inputs.items()}
    )
    with torch.inference_mode():
        expected = module(*inputs.values())[:2]
    difference = max(float(np.abs(a - b.numpy()).max()) for a, b in zip(found, expected, strict=True))
    if not difference <= MAX_DIFFERENCE:
        raise ValueError(
            f"{path.name} gives other probabilities than torch, by up to {difference:.1e}: it is of no use. "
            "Another version of torch, onnxscript or onnxruntime may write or read it right."
        )
    return difference


def _write_openvino(folder: Path) -> None:
    import openvino

    model = openvino.Core().read_model(folder / IMAGE_GRAPH)
    openvino.save_model(model, folder / OPENVINO_GRAPH, compress_to_fp16=False)


@contextmanager
def new_folder(out: Path, *, overwrite: bool) -> Iterator[Path]:
    """Yield a folder to fill, which becomes `out` at the end: a kill leaves no half of one.

    Raises:
        ValueError: `out` is there, and is not to be replaced, or is no exported model.
    """
    temporary, old = out.with_name(f".{out.name}.tmp"), out.with_name(f".{out.name}.old")
    if old.exists():  # a kill came between the two renames, or behind them
        if out.exists():
            shutil.rmtree(old)
        else:
            old.rename(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        if not overwrite:
            raise ValueError(f"{out} exists; give another --out, or replace it with --overwrite.")
        if not (out / "run.json").is_file() or read_facts(out).get("kind") != "export":
            raise ValueError(f"{out} is no exported model: --overwrite does not remove it.")
    if temporary.exists():
        shutil.rmtree(temporary)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        if out.exists():
            out.rename(old)
        temporary.rename(out)
    finally:
        if old.exists() and not out.exists():
            old.rename(out)
        for left in (temporary, old):
            if left.exists():
                shutil.rmtree(left)
