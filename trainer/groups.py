"""Which recordings must be on the same side of a split."""

from collections.abc import Iterable

import numpy as np
import pandas as pd
from jaxtyping import Int64
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

UNKNOWN_AUTHORS = frozenset(["", "unknown", "anonymous", "nan", "none"])


def linked_groups(
    num_recordings: int,
    keys: Iterable[Iterable[str]],
    pairs: Int64[np.ndarray, "p 2"],
) -> Int64[np.ndarray, " r"]:
    """Return a group number per recording: whoever shares a key, or is a pair, directly or by a chain.

    Args:
        keys: lists of a key per recording; "" is no key.
        pairs: recordings that belong together.
    """
    one, two = [pairs[:, 0]], [pairs[:, 1]]
    for column in keys:
        table = pd.DataFrame({"key": list(column), "recording": np.arange(num_recordings)})
        table = table[table["key"] != ""]
        first = table.groupby("key")["recording"].transform("min").to_numpy(np.int64)
        one.append(first)
        two.append(table["recording"].to_numpy(np.int64))
    links = np.concatenate(one), np.concatenate(two)
    graph = coo_array((np.ones(len(links[0]), bool), links), shape=(num_recordings, num_recordings))
    return np.asarray(connected_components(graph, directed=False)[1], np.int64)


def identity_keys(recordings: pd.DataFrame) -> list[list[str]]:
    """Return what tells that two files are one recording: the bytes' sha256 and the xeno-canto id."""
    return [_column(recordings, "sha256"), _column(recordings, "xc_id")]


def author_keys(recordings: pd.DataFrame) -> list[str]:
    """Return each recording's author, "" where it is unknown."""
    authors = [name.strip().casefold() for name in _column(recordings, "author")]
    return ["" if name in UNKNOWN_AUTHORS else name for name in authors]


def _column(recordings: pd.DataFrame, name: str) -> list[str]:
    if name not in recordings:
        return [""] * len(recordings)
    return [str(value) for value in recordings[name].fillna("")]
