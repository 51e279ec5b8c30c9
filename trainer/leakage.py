"""What the two sides of a split have in common: the report that a run is judged by."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool

from trainer.groups import author_keys, identity_keys
from trainer.splits import Folds

NAMED = 20


def leakage_report(
    recordings: pd.DataFrame, folds: Folds, trained: Bool[np.ndarray, " r"], held_out: Bool[np.ndarray, " r"]
) -> dict[str, Any]:
    """Count, and name up to NAMED of, the held-out recordings that training knows in one way or another.

    same_bytes, same_xc_id, near_duplicates: a copy was trained on. same_author: not a copy, but
    perhaps the same place, recorder and bird; unknown authors are counted apart.
    """
    bytes_, ids = identity_keys(recordings)
    authors = author_keys(recordings)
    names = recordings["filename"].astype(str).to_numpy()
    report: dict[str, Any] = {
        "trained": int(trained.sum()),
        "held_out": int(held_out.sum()),
        "folds": "given in the metadata" if folds.given else "computed",
    }
    for kind, keys in (("same_bytes", bytes_), ("same_xc_id", ids), ("same_author", authors)):
        array = np.array(keys, dtype=object)
        known = set(array[trained]) - {""}
        hit = held_out & pd.Series(array, dtype=object).isin(known).to_numpy()
        report[kind] = {"recordings": int(hit.sum()), "named": names[hit][:NAMED].tolist()}
    crossing = [(a, b) if held_out[a] else (b, a) for a, b in folds.pairs.tolist()
                if (held_out[a] and trained[b]) or (held_out[b] and trained[a])]  # fmt: skip
    report["near_duplicates"] = {
        "recordings": len({held for held, _ in crossing}),
        "named": [f"{names[held]} is like {names[other]}" for held, other in crossing[:NAMED]],
    }
    report["near_duplicate_pairs"] = len(folds.pairs)
    report["unknown_author"] = int(sum(1 for place in np.flatnonzero(held_out) if not authors[place]))
    return report


def leakage_lines(report: dict[str, Any]) -> list[str]:
    """Return one line per kind of leakage there is, for people."""
    texts = {
        "same_bytes": "have the bytes of a recording that is trained on",
        "same_xc_id": "have the xeno-canto id of a recording that is trained on",
        "near_duplicates": "are near-duplicates of a recording that is trained on",
        "same_author": "are by an author of recordings that are trained on",
    }
    lines = []
    for kind, text in texts.items():
        found = report[kind]
        if found["recordings"]:
            example = f", as {found['named'][0]}"
            lines.append(f"{found['recordings']} of {report['held_out']} held-out recordings {text}{example}")
    return lines


def crossing_report(
    recordings: pd.DataFrame, folds: Folds, has_clip: Bool[np.ndarray, " r"], held_out: Sequence[int]
) -> dict[str, Any]:
    """Return the report of each of these folds held out in turn, all others trained on, by its name."""
    return {
        str(fold): leakage_report(recordings, folds, has_clip & (folds.fold != fold), folds.fold == fold)
        for fold in held_out
    }
