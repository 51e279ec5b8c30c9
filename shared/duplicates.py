"""Near-duplicate recordings, found by what the backbone makes of them."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float32, Int64

from shared.clip_array import ClipArray
from shared.prefetch import prefetched

CLIPS_EACH = 4  # of a recording's clips; bounds the time that a long recording takes
READ_CLIPS = 256
BLOCK = 2048  # recordings compared at once


def recording_embeddings(
    maps: ClipArray,
    rows: Int64[np.ndarray, " rows"],
    recording: Int64[np.ndarray, " rows"],
    step_done: Callable[[int], object] = lambda _: None,
) -> tuple[np.ndarray, Float32[np.ndarray, "n d"]]:
    """Return recordings (N,), sorted, and their embeddings (N, C * F): means over time, of unit length.

    The mean over all recordings is taken off first: what all of them have in common says nothing.

    Args:
        rows: the clips that count; of each recording the first CLIPS_EACH are read.
        recording: of each of these rows.
        step_done: told how many clips have been read.
    """
    order = np.lexsort((rows, recording))
    rows, recording = rows[order], recording[order]
    recordings, first, place = np.unique(recording, return_index=True, return_inverse=True)
    some = np.arange(len(rows)) - first[place] < CLIPS_EACH
    rows, place = rows[some], place[some]
    num_values = maps.row_shape[0] * maps.row_shape[1]
    sums = np.zeros((len(recordings), num_values), np.float32)
    pieces = [slice(at, at + READ_CLIPS) for at in range(0, len(rows), READ_CLIPS)]
    for piece, read in zip(pieces, prefetched(maps.read(rows[p]) for p in pieces), strict=True):
        means = read.astype(np.float32).mean(axis=3).reshape(len(read), num_values)
        np.add.at(sums, place[piece], means)
        step_done(len(read))
    embeddings = sums / np.bincount(place, minlength=len(recordings)).astype(np.float32)[:, None]
    embeddings -= embeddings.mean(axis=0)
    lengths = np.linalg.norm(embeddings, axis=1, keepdims=True)
    return recordings, (embeddings / np.maximum(lengths, 1e-12)).astype(np.float32)


def similar_pairs(embeddings: Float32[np.ndarray, "n d"], threshold: float) -> Int64[np.ndarray, "p 2"]:
    """Return all pairs whose cosine is at least `threshold`, the smaller place first, sorted.

    Compared block by block: memory for BLOCK x BLOCK cosines, time quadratic in N (24,000
    recordings of 2240 values: about 20 s on two cores).
    """
    found = [np.zeros((0, 2), np.int64)]
    for a in range(0, len(embeddings), BLOCK):
        for b in range(a, len(embeddings), BLOCK):
            cosines = embeddings[a : a + BLOCK] @ embeddings[b : b + BLOCK].T
            one, two = np.nonzero(cosines >= threshold)
            pairs = np.column_stack([one + a, two + b])
            found.append(pairs[pairs[:, 0] < pairs[:, 1]])
    pairs = np.concatenate(found)
    return np.asarray(pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))])
