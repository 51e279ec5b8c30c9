"""Clips on a plane: near each other where the backbone makes the same of them."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float32
from tqdm import tqdm

from shared.audio import FULL_SCALE
from shared.store import FeatureStore
from trainer.data import ClipData
from trainer.evaluate import waveform_data
from trainer.network import Network
from trainer.run import Run

MAX_CLIPS = 1500  # the time of t-SNE grows with them
MAX_CLIPS_OF_NETWORK = 300  # pass a tuned backbone
MIN_CLIPS = 12
PERPLEXITY = 30.0
READ_CLIPS = 32


@dataclass(frozen=True)
class ClipMap:
    """places: (N, 2); species: (N,) the first primary label of each clip's recording.

    of: whose maps; kind: held-out or training; num_clips: how many there are, of which N are drawn.
    """

    places: Float32[np.ndarray, "n 2"]
    species: np.ndarray
    of: str
    kind: str
    num_clips: int


def map_clips(
    run: Run, store: FeatureStore, chosen: np.ndarray, kind: str, device: torch.device
) -> ClipMap | None:
    """Lay clips of chosen recordings on a plane by t-SNE of their maps' means; None: too few clips.

    A clip's vector is its map's mean over frequency and time (C,), every value scaled to unit deviation. A
    tuned network's maps are its own. With more than MAX_CLIPS, so many are drawn by chance (seed 0).
    Source: van der Maaten, Hinton 2008; scikit-learn.

    chosen: (R,) which recordings; kind: of clips, held-out or training.
    """
    from sklearn.manifold import TSNE

    network = run.model if isinstance(run.model, Network) else None
    if network is None:
        data = ClipData(store, run.taxonomy, run.train.labels)
    else:
        data = waveform_data(store, run.taxonomy, run.train.labels, device)
    rows = data.usable_rows()
    rows = rows[chosen[data.recording_of_row[rows]]]
    num_clips = len(rows)
    most = MAX_CLIPS if network is None else MAX_CLIPS_OF_NETWORK
    if len(rows) > most:
        rows = np.sort(np.random.default_rng(0).choice(rows, most, replace=False))
    if len(rows) < MIN_CLIPS:
        return None
    pieces = [rows[first : first + READ_CLIPS] for first in range(0, len(rows), READ_CLIPS)]
    with tqdm(pieces, unit="read", desc="laying out clips", leave=False) as bar:
        vectors = np.concatenate([_vectors(data, network, piece, device) for piece in bar])
    vectors = (vectors - vectors.mean(axis=0)) / np.maximum(vectors.std(axis=0), 1e-6)
    perplexity = min(PERPLEXITY, (len(rows) - 1) / 3)
    places = TSNE(init="pca", perplexity=perplexity, random_state=0).fit_transform(vectors)
    species = np.array(data.first_primary(), object)[data.recording_of_row[rows]]
    of = "the tuned backbone" if network else "the frozen backbone"
    return ClipMap(places.astype(np.float32), species, of, kind, num_clips)


@torch.inference_mode()
def _vectors(
    data: ClipData, network: Network | None, rows: np.ndarray, device: torch.device
) -> Float32[np.ndarray, "n c"]:
    found = data.source.read(rows).to(device).float()
    if network is not None:
        network.to(device).eval()
        found = network.backbone.normalised(network.front_end(found / FULL_SCALE))
        for stage in network.stages:
            found = stage(found)
    return np.asarray(found.mean(dim=(2, 3)).cpu().numpy())
