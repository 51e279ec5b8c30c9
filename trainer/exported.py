"""The folder of an exported model: what is in it, and how it is opened.

model.onnx            image, valid_samples -> probabilities and logits, any batch
model_waveform.onnx   the same from waveforms, with the log-mel inside
model.xml, model.bin  model.onnx as OpenVINO's own (--openvino)
model.safetensors     the weights of trainer/whole_model.py
config.toml, taxonomy.csv, calibration.json   as in a run folder
prior.csv             each species' share of the run's recordings, by their first label
attribution.csv       the training recordings' authors and licences
README.md             the model card
run.json              kind "export", shapes, versions, what was measured of its graphs
"""

import csv
import tomllib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from shared.backbone import load_backbone
from shared.documents import UNREADABLE
from shared.features import FeatureConfig
from shared.taxonomy import Taxonomy, read_taxonomy
from trainer.calibration import Calibration, no_calibration, read_calibration
from trainer.config import TrainConfig
from trainer.heads import Head
from trainer.run import parse_run_config
from trainer.whole_model import WholeModel

IMAGE_GRAPH, WAVEFORM_GRAPH, OPENVINO_GRAPH = "model.onnx", "model_waveform.onnx", "model.xml"
WEIGHTS = "model.safetensors"
PRIOR = "prior.csv"


@dataclass(frozen=True)
class Exported:
    """An exported model's folder; its weights are read by `model`."""

    path: Path
    train: TrainConfig
    features: FeatureConfig
    taxonomy: Taxonomy
    calibration: Calibration
    prior: np.ndarray
    facts: dict[str, Any]

    @property
    def map_hop(self) -> int:
        """Samples between frames of the backbone's map."""
        return int(self.facts["frame_hop"])

    @property
    def frame_hop(self) -> int:
        """Samples between frames of the output."""
        return self.map_hop * -(-int(self.facts["map_shape"][2]) // int(self.facts["frames"]))

    def graph(self, engine: str) -> Path:
        """Return the file that an engine runs.

        Raises:
            ValueError: it is missing.
        """
        names = (OPENVINO_GRAPH, IMAGE_GRAPH) if engine == "openvino" else (IMAGE_GRAPH,)
        for name in names:
            if (self.path / name).is_file():
                return self.path / name
        raise ValueError(f"{self.path} lacks {names[-1]}; export it again, or use --engine torch.")

    def model(self) -> WholeModel:
        """Return the model with its weights, on the CPU in fp32.

        Raises:
            ValueError: the weights are missing, damaged or of another model.
        """
        stage, shape = str(self.facts["stage"]), self.facts["map_shape"]
        bare = replace(self.features.backbone, stages=(stage,), weights="random", precision="fp32")
        num_backbones, num_heads = int(self.facts["backbones"]), int(self.facts["heads"])
        backbones = [load_backbone(bare, torch.device("cpu")) for _ in range(num_backbones)]
        heads = [Head(shape[0], shape[1], len(self.taxonomy), self.train.head) for _ in range(num_heads)]
        model = WholeModel(
            backbones, list(heads), self.calibration, map_hop=self.map_hop, num_map_frames=int(shape[2])
        )
        file = self.path / WEIGHTS
        try:
            model.load_state_dict(load_file(file))
        except FileNotFoundError as error:
            raise ValueError(f"{self.path} lacks {WEIGHTS}; use --engine onnxruntime or openvino.") from error
        except (SafetensorError, RuntimeError) as error:
            raise ValueError(f"{file} is damaged, or does not fit config.toml and taxonomy.csv.") from error
        return model


def read_exported(path: Path, facts: dict[str, Any]) -> Exported:
    """Open an exported model's folder, whose run.json is known.

    Raises:
        ValueError: a file is missing or damaged.
    """
    missing = {"stage", "map_shape", "frame_hop", "frames", "backbones", "heads"} - {*facts}
    if missing:
        raise ValueError(f"{path}/run.json lacks {', '.join(sorted(missing))}; export the model again.")
    try:
        sections = tomllib.loads((path / "config.toml").read_text(encoding="utf-8"))
        train, features, _ = parse_run_config(sections, facts)
        taxonomy = read_taxonomy(path / "taxonomy.csv")
        with (path / PRIOR).open(newline="", encoding="utf-8") as file:
            shares = {row["primary_label"]: float(row["prior"]) for row in csv.DictReader(file)}
        prior = np.array([shares[code] for code in taxonomy.species], np.float32)
    except UNREADABLE as error:
        raise ValueError(f"{path} has a missing or damaged file: {error}.") from error
    calibration = read_calibration(path, taxonomy) or no_calibration(len(taxonomy))
    return Exported(path, train, features, taxonomy, calibration, prior, facts)
