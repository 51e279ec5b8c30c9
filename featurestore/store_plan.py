"""The plan of a store that exists already, from its own tables: for repair and for embed."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from featurestore.build import OVERFLOW
from featurestore.plan import Plan
from featurestore.row_source import RowBatch, batches_of
from shared.audio import Finding
from shared.clip_array import ClipArray
from shared.clips import ClipConfig
from shared.commit import Commit


def plan_of_tables(
    tables: dict[str, pd.DataFrame], attributes: dict[str, Any], paths: list[Path | None]
) -> Plan:
    """Return the plan that the store was built by; `paths` says where each recording's audio is now."""
    recordings, clips = tables["recordings"].copy(), tables["clips"]
    has_rows = np.isin(np.arange(len(recordings)), clips["recording"].to_numpy())
    # What was found of recordings with rows stands in the commits.
    recordings["status"] = np.where(has_rows, "", recordings["status"].astype(str)).astype(object)
    recordings["reason"] = np.where(has_rows, "", recordings["reason"].astype(str)).astype(object)
    return Plan(
        recordings=recordings,
        labels=tables["labels"],
        problems=tuple(attributes["problems"]),
        paths=paths,
        recording=clips["recording"].to_numpy(np.int64),
        start=clips["start"].to_numpy(np.int64),
        shard_clips=attributes["shard_clips"],
        hop_samples=ClipConfig(**attributes["config"]["clips"]).grid().hop_samples,
        tail_samples_left_out=attributes["tail_samples_left_out"],
    )


@dataclass(frozen=True)
class WaveformSource:
    """Yields the batches of shards from a store's waveforms; nothing is decoded.

    commits: by shard; what they say of rows and recordings is taken over.
    """

    plan: Plan
    waveforms: ClipArray
    commits: dict[int, Commit]
    batch_clips: int

    def batches(self, shards: list[int]) -> Iterator[RowBatch]:
        """Yield every batch of the shards."""
        for shard in shards:
            commit = self.commits[shard]
            first = commit.rows[0]
            found = {sha256: _without_overflow(finding) for sha256, finding in commit.recordings.items()}
            for rows in batches_of(self.plan.rows_of(shard), self.batch_clips):
                local = slice(rows.start - first, rows.stop - first)
                yield RowBatch(
                    rows=rows,
                    waveforms=self.waveforms.read(np.arange(rows.start, rows.stop)),
                    stored=[None] * len(rows),
                    gain=commit.gain[local],
                    valid_samples=commit.valid_samples[local],
                    recordings={sha256: found[sha256] for sha256 in dict.fromkeys(self.plan.sha256_of(rows))},
                )


def _without_overflow(finding: Finding) -> Finding:
    """Maps are made anew: whether they pass float16's range is found anew."""
    return Finding(
        finding.status, tuple(reason for reason in finding.reasons if reason not in OVERFLOW.reasons)
    )
