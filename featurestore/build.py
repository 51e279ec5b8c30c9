"""Plan in, store out: decode, embed, write and commit shard after shard."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from featurestore.numerics import numerics_of
from featurestore.plan import Plan
from featurestore.row_source import RowBatch, RowSource, batches_of
from featurestore.stored_rows import StoredRows
from featurestore.views import Views, ViewSections
from shared.audio import Finding
from shared.commit import Commit, Run
from shared.config import as_sections, differences
from shared.embedder import Embedder
from shared.pipeline import in_order
from shared.shards import shard_bytes
from shared.store import VIEWS, view_group
from shared.store_writer import ArraySpec, StoreWriter

Progress = Callable[[int], object]
OVERFLOW = Finding("ok", ("map values passed float16's range and were cut to it",))


@dataclass(frozen=True)
class _Finished:
    """A batch with its maps, ready to be written."""

    batch: RowBatch
    arrays: dict[str, np.ndarray]


def add_findings(findings: dict[str, Finding], more: dict[str, Finding]) -> None:
    """Join what was found of recordings, by audio sha256, into `findings`."""
    for sha256, finding in more.items():
        findings[sha256] = findings.get(sha256, Finding("ok")).joined(finding)


class Builder:
    """Computes the shards of a plan that a store does not have yet."""

    def __init__(
        self,
        path: Path,
        embedder: Embedder,
        *,
        shard_clips: int,
        with_waveforms: bool,
        workers: int,
        views: Views | None = None,
    ) -> None:
        self.path = path
        self.embedder = embedder
        self.views = views or Views(ViewSections(), embedder.grid, embedder.device)
        self.workers = workers
        self.clock = embedder.clock
        self.arrays = {
            f"{group}/{stage}": ArraySpec(shape, "float16", {"frame_hop": embedder.frame_hops[stage]})
            for group in ("maps", *map(view_group, self.views.numbers))
            for stage, shape in embedder.map_shapes.items()
        }
        if with_waveforms:
            self.arrays["waveforms"] = ArraySpec((embedder.grid.clip_samples,), "int16", {})
        self.shard_clips = shard_clips

    @property
    def threads(self) -> dict[str, int]:
        """How many threads work on each part of a build."""
        return {"decode": self.workers, "embed": self.embedder.streams, "write": 1}

    def bytes_per_clip(self) -> int:
        """Return the bytes that a clip takes on the disk."""
        return sum(shard_bytes(1, spec.row_bytes) for spec in self.arrays.values())

    def open(self, attributes: dict[str, Any]) -> StoreWriter:
        """Create the store, or go on with a compatible one.

        Raises:
            ValueError: it was built from another config or with other arrays; all differing
                keys are named.
        """
        writer = StoreWriter(self.path, attributes, self.arrays, self.shard_clips)
        self.refuse_another_config(writer.attributes, has_waveforms=(self.path / "waveforms").exists())
        return writer

    def refuse_another_config(self, found: dict[str, Any], *, has_waveforms: bool) -> None:
        """Stop where a store's rows are not what this builder would make.

        found: the store's root attributes.

        Raises:
            ValueError: all differing keys are named.
        """
        changed = differences(found["fingerprint_of"], self.embedder.fingerprint_of)
        changed += differences({VIEWS: found.get(VIEWS, {})}, {VIEWS: self.views.attributes})
        if found["shard_clips"] != self.shard_clips:
            changed.append(f"store.shard_clips: {found['shard_clips']} -> {self.shard_clips}")
        if has_waveforms != ("waveforms" in self.arrays):
            changed.append(f"waveforms: {has_waveforms} -> {not has_waveforms}")
        if changed:
            raise ValueError(
                f"{self.path} was built from another config; these differ (store -> now): "
                + "; ".join(changed)
                + ". Build into another --out, or go back to the store's settings."
            )

    def admit_numerics(self, writer: StoreWriter, *, allow_mixed: bool) -> None:
        """Record what decides the last bits of the rows that will be added.

        Raises:
            ValueError: it differs from that of the store's rows, unless `allow_mixed`.
        """
        numerics, known = numerics_of(self.embedder), writer.attributes["numerics"]
        if numerics in known:
            return
        if not allow_mixed:
            lines = differences(known[0], numerics)
            raise ValueError(
                f"{self.path} was built under other numerics, so the last bits of new rows "
                f"would differ (store -> now): {'; '.join(lines)}. Use --allow-mixed to go "
                "on all the same."
            )
        known.append(numerics)
        writer.write_attributes()

    def pending(self, writer: StoreWriter, plan: Plan) -> list[int]:
        """Return the shards that are missing or were made from other audio."""
        missing = []
        for shard in range(plan.num_shards):
            commit = writer.commit_of(shard)
            if commit is None or commit.runs != plan.runs_of(shard):
                missing.append(shard)
        return missing

    def run(self, writer: StoreWriter, plan: Plan, shards: list[int], progress: Progress) -> None:
        """Compute, write and commit the given shards of a plan; `progress` is told finished clips.

        Rows that the store has already, in these shards or where recordings moved up, are copied.
        Where rows are removed or replaced, the store is withdrawn first: a reader never finds
        rows of one recording under another's labels, whenever a kill comes.
        """
        commits = self._known_commits(writer, plan, shards)
        stored = StoredRows.of(writer, commits, plan.hop_samples)
        if commits and not stored.can_be_read:
            self._refuse_to_lose_rows(plan, shards, commits)
        if moves_rows(writer, plan, commits):
            writer.withdraw()
        source = RowSource(
            plan, self.embedder.grid, stored, self.embedder.batch_clips, self.workers, self.clock
        )
        self.run_from(source.batches(shards), stored, writer, plan, shards, progress)

    def _refuse_to_lose_rows(self, plan: Plan, shards: list[int], commits: dict[int, Commit]) -> None:
        """Stop before rows are overwritten that only this store has and that cannot be copied here.

        Raises:
            ValueError: names their recordings.
        """
        known = {sha256 for commit in commits.values() for sha256, _, _ in commit.runs}
        needed = {int(number) for shard in shards for number in plan.recording[plan.rows_of(shard)]}
        names = [
            str(plan.recordings["filename"].iloc[number])
            for number in sorted(needed)
            if plan.paths[number] is None and str(plan.recordings["sha256"].iloc[number]) in known
        ]
        if names:
            raise ValueError(
                f"the audio of {len(names)} recordings is not there ({names[0]} first), and here their rows "
                "cannot be copied while their shards are replaced: files cannot be mapped, or too many rows "
                "move. Bring the audio back, or --prune them."
            )

    def run_from(
        self,
        source: Iterator[RowBatch],
        stored: StoredRows,
        writer: StoreWriter,
        plan: Plan,
        shards: list[int],
        progress: Progress,
    ) -> None:
        """Embed, write and commit shards whose batches come from `source`, in order."""
        size, streams = self.embedder.batch_clips, self.embedder.streams
        with closing(source) as batches:  # type: ignore[type-var]
            finished = in_order(
                lambda batch: [self._finish(batch, stored, plan)], batches, workers=streams, ahead=2 * streams
            )
            with closing(finished):  # type: ignore[type-var]
                for shard in shards:
                    num_batches = len(batches_of(plan.rows_of(shard), size))
                    self._write_shard(writer, plan, shard, islice(finished, num_batches), progress)

    def _known_commits(self, writer: StoreWriter, plan: Plan, shards: list[int]) -> dict[int, Commit]:
        """Return the commits that pending rows may be copied from: all, where rows move."""
        found = {shard: commit for shard in shards if (commit := writer.commit_of(shard))}
        grows_only = all(
            plan.num_rows >= commit.rows[1] and runs_start_with(plan.runs_of(shard), commit)
            for shard, commit in found.items()
        )
        if not grows_only or writer.attributes["num_rows"] > plan.num_rows:
            for shard in range(shards[0] if shards else 0, self._num_committed(writer)):
                if shard not in found and (commit := writer.commit_of(shard)):
                    found[shard] = commit
        return dict(sorted(found.items()))

    def all_commits(self, writer: StoreWriter) -> dict[int, Commit]:
        """Return the commits of all shards, of those behind the published rows too."""
        shards = range(self._num_committed(writer))
        return {shard: commit for shard in shards if (commit := writer.commit_of(shard))}

    def _num_committed(self, writer: StoreWriter) -> int:
        folders = [int(path.name) for path in (writer.path / "commits").iterdir() if path.is_dir()]
        return max(folders, default=-1) + 1

    def _write_shard(
        self,
        writer: StoreWriter,
        plan: Plan,
        shard: int,
        finished: Iterator[_Finished],
        progress: Progress,
    ) -> None:
        seen: list[RowBatch] = []

        def arrays() -> Iterator[dict[str, np.ndarray]]:
            for done in finished:
                yield done.arrays
                # Only what the commit says is kept of a shard: a view would keep its samples alive.
                seen.append(replace(done.batch, waveforms=np.empty((0, 0), np.int16)))
                progress(len(done.batch.rows))

        files = writer.write_shard(shard, arrays(), self.clock)
        recordings: dict[str, Finding] = {}
        for batch in seen:
            add_findings(recordings, batch.recordings)
        rows = plan.rows_of(shard)
        commit = Commit(
            rows=(rows.start, rows.stop),
            runs=plan.runs_of(shard),
            files=files,
            gain=[gain for batch in seen for gain in batch.gain],
            valid_samples=[valid for batch in seen for valid in batch.valid_samples],
            recordings=recordings,
        )
        writer.commit(shard, commit)

    def _finish(self, batch: RowBatch, stored: StoredRows, plan: Plan) -> _Finished:
        """Embed a batch, or copy it where the store has all its rows."""
        if batch.is_stored:
            rows = [row for row in batch.stored if row is not None]
            return _Finished(batch, {name: stored.read(name, rows) for name in self.arrays})
        arrays, overflows = self._embedded(batch, plan)
        silent = np.array(batch.valid_samples) == 0
        for name, maps in arrays.items():
            maps[silent] = 0  # a row without audio is a row of zeros: never trained on, and named
            for place, known in enumerate(batch.stored):
                has_audio = plan.paths[int(plan.recording[batch.rows[place]])] is not None
                if known is not None and not has_audio and not stored.has("waveforms"):
                    maps[place] = stored.read(name, [known])[0]  # all that is left of it
        cut = [batch.rows[place] for place in np.flatnonzero(overflows)]
        for row in cut:
            add_findings(batch.recordings, {plan.sha256_of(range(row, row + 1))[0]: OVERFLOW})
        return _Finished(batch, arrays | {"waveforms": batch.waveforms})

    def _embedded(self, batch: RowBatch, plan: Plan) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Return the maps of a batch and of its views by array, and per clip how many values were cut."""
        clean = self.embedder.embed(batch.waveforms)
        arrays = {f"maps/{stage}": maps for stage, maps in clean.maps.items()}
        overflows = clean.overflows
        starts = plan.start[batch.rows.start : batch.rows.stop].tolist()
        causes = [
            f"{sha256}/{start}" for sha256, start in zip(plan.sha256_of(batch.rows), starts, strict=True)
        ]
        for number in self.views.numbers:
            with self.clock.measured("augment"):
                waveforms = self.views.of(batch.waveforms, batch.valid_samples, causes, number)
            view = self.embedder.embed(waveforms)
            arrays |= {f"{view_group(number)}/{stage}": maps for stage, maps in view.maps.items()}
            overflows = overflows + view.overflows
        return arrays, overflows

    def publish(self, writer: StoreWriter, plan: Plan) -> int:
        """Gather the commits into the tables and make the rows visible; return how many.

        A build that was stopped has its rows up to the first missing shard.
        """
        gain, valid_samples = np.zeros(plan.num_rows, np.float32), np.zeros(plan.num_rows, np.int64)
        findings: dict[str, Finding] = {}
        num_rows = 0
        for shard in range(plan.num_shards):
            commit = writer.commit_of(shard)
            if commit is None or commit.runs != plan.runs_of(shard):
                break
            rows = slice(*commit.rows)
            gain[rows], valid_samples[rows] = commit.gain, commit.valid_samples
            add_findings(findings, commit.recordings)
            num_rows = commit.rows[1]
        is_finished = num_rows == plan.num_rows
        recordings = plan.recordings.copy()
        given = zip(recordings["status"], recordings["reason"], recordings["sha256"], strict=True)
        found = [
            Finding(status, (reason,)) if status else findings.get(str(sha256), Finding("ok"))
            for status, reason, sha256 in given
        ]
        recordings["status"] = [finding.status for finding in found]
        recordings["reason"] = ["; ".join(finding.reasons) for finding in found]
        clips = pd.DataFrame(
            {
                "recording": plan.recording[:num_rows].astype(np.int64),
                "start": plan.start[:num_rows],
                "valid_samples": valid_samples[:num_rows],
                "gain": gain[:num_rows],
            }
        )
        tables = {"clips": clips, "recordings": recordings, "labels": plan.labels}
        unfinished = () if is_finished else (f"stopped: {num_rows} of {plan.num_rows} clips are here",)
        writer.attributes["problems"] = [*plan.problems, *unfinished]
        writer.attributes["tail_samples_left_out"] = plan.tail_samples_left_out
        writer.publish(tables, finished=is_finished)
        return num_rows


def runs_start_with(runs: tuple[Run, ...], commit: Commit) -> bool:
    """Tell whether a shard's rows begin with those of a commit: rows were added and none moved."""
    num_old = len(commit.runs)
    if not num_old:
        return True
    if runs[: num_old - 1] != commit.runs[:-1] or len(runs) < num_old:
        return False
    (name, start, count), (old_name, old_start, old_count) = runs[num_old - 1], commit.runs[-1]
    return (name, start) == (old_name, old_start) and count >= old_count


def moves_rows(writer: StoreWriter, plan: Plan, commits: dict[int, Commit]) -> bool:
    """Tell whether a published row would become another clip, rather than rows being added."""
    if writer.attributes["num_rows"] > plan.num_rows:
        return True
    return any(
        shard >= plan.num_shards or not runs_start_with(plan.runs_of(shard), commit)
        for shard, commit in commits.items()
    )


def check_free_space(path: Path, num_bytes: int) -> int:
    """Return the free bytes where the store goes.

    Raises:
        ValueError: less than the store needs.
    """
    folder = path.absolute().parent
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if num_bytes > free:
        raise ValueError(
            f"the store needs {num_bytes / 1e9:.1f} GB and {folder} has {free / 1e9:.1f} GB free. "
            "Make room, choose another --out, or leave the waveforms out with --no-waveforms."
        )
    return free


def store_attributes(
    embedder: Embedder, taxonomy: list[str], views: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Return the root attributes of a new store: no times, no paths."""
    sections = as_sections(embedder.config)
    sections["backbone"]["weights"] = Path(sections["backbone"]["weights"]).name
    return {
        "fingerprint": embedder.fingerprint,
        "fingerprint_of": embedder.fingerprint_of,
        "config": sections,
        "stages": list(embedder.stages),
        "weights": {
            "sha256": embedder.backbone.weights_sha256,
            "source": embedder.backbone.weights_source,
        },
        "numerics": [numerics_of(embedder)],
        "taxonomy": taxonomy,
        "problems": [],
        "tail_samples_left_out": 0,
        **({VIEWS: views} if views else {}),
    }
