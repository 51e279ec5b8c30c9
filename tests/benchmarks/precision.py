"""What each rounding costs: int16 samples, float16 maps, bf16 in the backbone; as error and as recognition.

Needs real recordings with folds: DAWNCHORUS_DATA/esc10, in the layout of a metadata file and a folder.
"""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from measuring import Numbers, show

from shared.audio import ClipDecoder, read_header, to_int16
from shared.backbone import BackboneConfig
from shared.embedder import Embedder
from shared.features import FeatureConfig
from shared.mel import MelConfig

CPU = torch.device("cpu")
BACKBONES = (("torch", "fp32"), ("openvino", "fp32"), ("torch", "bf16"), ("openvino", "bf16"))


def clips_of(table: pd.DataFrame, audio: Path, config: FeatureConfig) -> np.ndarray:
    """Return the first clip of every recording, (R, S) float32."""
    first = []
    for name in table["filename"]:
        path = audio / name
        first.append(next(iter(ClipDecoder(path, read_header(path), config.clips.grid()))).samples)
    return np.stack(first)


def maps_of(embedder: Embedder, waveforms: np.ndarray) -> np.ndarray:
    """Return maps (R, C, F, T) in float32, as the engine gives them."""
    found = []
    with torch.inference_mode():
        for first in range(0, len(waveforms), embedder.batch_clips):
            batch = torch.zeros(embedder.batch_clips, waveforms.shape[1])
            some = torch.from_numpy(waveforms[first : first + embedder.batch_clips])
            batch[: len(some)] = some
            (maps,) = embedder.engine(embedder.images.image(batch).contiguous())
            found.append(maps[: len(some)].float().numpy().copy())
    return np.concatenate(found)


def accuracies(maps: np.ndarray, classes: np.ndarray, folds: np.ndarray) -> np.ndarray:
    """Return whether each recording is recognised when its fold is held out: logistic regression."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    pooled = maps.astype(np.float64).mean(axis=(2, 3))
    right = np.zeros(len(maps), bool)
    for fold in np.unique(folds):
        held = folds == fold
        model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=5000))
        model.fit(pooled[~held], classes[~held])
        right[held] = model.predict(pooled[held]) == classes[held]
    return right


def error_row(maps: np.ndarray, exact: np.ndarray) -> list[str]:
    """Return mean and lowest cosine over clips, and the largest error as a part of the map's range."""
    one, two = (m.reshape(len(m), -1).astype(np.float64) for m in (maps, exact))
    cosines = (one * two).sum(1) / np.sqrt((one**2).sum(1) * (two**2).sum(1))
    largest = np.abs(one - two).max() / np.abs(two).max()
    return [f"{cosines.mean():.6f}", f"{cosines.min():.6f}", f"{largest:.1e}"]


def precision() -> Numbers:
    """Errors and accuracies of every rounding, beside float32 throughout."""
    data = os.environ.get("DAWNCHORUS_DATA")
    if not data:
        print("\nprecision: left out, DAWNCHORUS_DATA is not set")
        return {}
    folder = Path(data) / "esc10"
    table = pd.read_csv(folder / "train_metadata.csv")
    config = FeatureConfig(
        mel=MelConfig(channels="repeat"),
        backbone=BackboneConfig(name="tf_efficientnet_lite0", engine="torch"),
    )
    exact = clips_of(table, folder / "train_audio", config)
    rounded = np.stack([to_int16(clip)[0].astype(np.float32) / 32768 for clip in exact])
    embedders = {
        f"{engine} {precision}": Embedder(
            replace(config, backbone=replace(config.backbone, engine=engine, precision=precision)), CPU
        )
        for engine, precision in BACKBONES
    }
    reference = maps_of(embedders["torch fp32"], exact)
    with torch.inference_mode():
        image = embedders["torch fp32"].images.image
        images = [image(torch.from_numpy(samples[:64])) for samples in (exact, rounded)]
    errors = (images[0] - images[1]).abs() * config.mel.top_db
    decibels = {"mean": float(errors.mean()), "largest": float(errors.max())}
    found = {"float32 throughout": reference, "int16 samples": maps_of(embedders["torch fp32"], rounded)}
    found |= {f"int16, {name}": maps_of(embedder, rounded) for name, embedder in embedders.items()}
    found["float16 maps"] = reference.astype(np.float16)
    found["as stored: int16, torch fp32, float16"] = found["int16, torch fp32"].astype(np.float16)
    classes, folds = table["primary_label"].to_numpy(), table["fold"].to_numpy()
    right = {name: accuracies(maps, classes, folds) for name, maps in found.items()}
    base = right["float32 throughout"]
    rows = [
        [name, *error_row(maps, reference), f"{right[name].mean():.4f}",
         f"{(right[name] & ~base).sum()} / {(base & ~right[name]).sum()}"]
        for name, maps in found.items()
    ]  # fmt: skip
    header = ["maps", "mean cosine", "lowest", "largest error", "accuracy", "won / lost"]
    title = (
        f"{len(exact)} clips, tf_efficientnet_lite0, last block; error is a part of the range; accuracy of\n"
        "logistic regression over the folds; won and lost: recordings, against float32"
    )
    show(title, header, rows)
    print("int16 samples change the log-mel by "
          f"{decibels['mean']:.4f} dB on average, {decibels['largest']:.2f} at most")  # fmt: skip
    return {
        f"precision.accuracy_{name.replace(',', '').replace(' ', '_')}": float(values.mean())
        for name, values in right.items()
    } | {f"precision.int16_log_mel_{name}_db": value for name, value in decibels.items()}
