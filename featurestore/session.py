"""A build from start to end: sources, plan, what is missing, the work, the summary."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from featurestore.build import Builder, check_free_space, store_attributes
from featurestore.containers import finish_container, folder_of, work_folder
from featurestore.known import Known
from featurestore.plan import Plan, Source, join_sources, make_plan
from featurestore.row_source import RowBatch
from featurestore.seen import SeenFiles, seen_path
from featurestore.stored_rows import StoredRows
from featurestore.summary import stage_table, store_facts, summary_text
from featurestore.views import Views, ViewSections
from shared.command_line import size_text
from shared.embedder import Embedder
from shared.features import FeatureConfig
from shared.lock import locked
from shared.metadata import Metadata
from shared.stopping import Stopped, stoppable, stopping_only_at
from shared.store import FeatureStore, files_of, is_hdf5, read_attributes
from shared.store_writer import StoreWriter

Say = Callable[[str], object]
NAMED = 5


@dataclass(frozen=True, kw_only=True)
class StoreRequest:
    """What a store is to hold, and how it is made.

    workers: threads that decode, and, on a CPU, threads that embed.
    """

    out: Path
    config: FeatureConfig
    device: torch.device
    workers: int
    with_waveforms: bool
    views: ViewSections
    allow_mixed: bool
    break_lock: bool


@dataclass(frozen=True, kw_only=True)
class BuildRequest(StoreRequest):
    """What `featurestore build` was asked to do.

    prune: remove the rows of recordings that the metadata no longer has.
    """

    sources: list[Source]
    prune: bool


def build_store(request: BuildRequest, say: Say) -> FeatureStore:
    """Build or go on with a store, and return it.

    Raises:
        ValueError: what a user can mend; says how.
        Stopped: a signal came; what is finished is in the store.
    """
    refuse_other_output(request.out)
    with locked(request.out, break_lock=request.break_lock), stoppable():
        builder = builder_for(request)
        embedder = builder.embedder
        species = request.sources[0].metadata.primary_species()
        attributes = store_attributes(embedder, species, builder.views.attributes)
        refuse_another_config(builder, request.out)  # before anything is unpacked or read
        work = work_folder(request.out)
        if work.exists():
            builder.open(attributes)
        plan = _plan(request, work, say)
        builder.views.refuse_own(plan.recordings)
        if not plan.num_rows:
            first = plan.recordings.iloc[0]
            raise ValueError(
                f"none of the {len(plan.recordings)} recordings can be read; the first: "
                f"{first['filename']}: {first['reason']}."
            )
        shards = list(range(plan.num_shards))
        if work.exists():
            shards = builder.pending(builder.open(attributes), plan)
        _announce(request, builder, plan, shards, say)

        def opened() -> StoreWriter:
            writer = builder.open(attributes)
            if shards:
                builder.admit_numerics(writer, allow_mixed=request.allow_mixed)
            writer.attributes["taxonomy"] = attributes["taxonomy"]
            return writer

        seconds = run_to_the_end(builder, opened, plan, shards)
        finish_container(request.out)
        if shards:
            say(stage_table(builder.clock, plan_clips(plan, shards), seconds, builder.threads))
    return FeatureStore(request.out)


def builder_for(request: StoreRequest) -> Builder:
    """Return the builder of a store, with its embedder and its views' policy ready.

    Raises:
        ValueError: weights, engine or policy cannot be used.
    """
    embedder = embedder_for(request.config, request.device, request.workers)
    return Builder(
        folder_of(request.out),
        embedder,
        shard_clips=request.config.store.shard_clips,
        with_waveforms=request.with_waveforms,
        workers=request.workers,
        views=Views(request.views, embedder.grid, request.device),
    )


def embedder_for(config: FeatureConfig, device: torch.device, workers: int) -> Embedder:
    """Return the embedder of a build: on a CPU a stream a worker, each on one core."""
    if device.type == "cpu" and workers == 1:
        torch.set_num_threads(1)  # one stream would use all cores
    return Embedder(config, device, streams=workers if device.type == "cpu" else 1)


def run_to_the_end(
    builder: Builder,
    opened: Callable[[], StoreWriter],
    plan: Plan,
    shards: list[int],
    source: Iterator[RowBatch] | None = None,
) -> float:
    """Compute what is missing under a progress bar, publish, and return the wall seconds.

    When a signal comes, what is finished is published first. `opened` creates the store or opens
    it; `source` yields the rows' samples, which by default are decoded from the audio.
    """
    num_clips = plan_clips(plan, shards)
    grid = builder.embedder.grid
    hours_per_clip = grid.hop_samples / grid.sample_rate_hz / 3600
    with (
        tqdm(total=num_clips, unit="clip", desc="embedding", disable=not num_clips) as bar,
        stopping_only_at("after the batch in flight") as stop_if_asked,
    ):
        estimate = RateEstimate(num_clips, bar.write)

        def progress(clips: int) -> None:
            estimate(clips)
            bar.set_postfix_str(f"{(bar.n + clips) * hours_per_clip:.2f} audio-hours", refresh=False)
            bar.update(clips)
            stop_if_asked()

        writer = opened()
        try:
            if source is None:
                builder.run(writer, plan, shards, progress)
            else:
                builder.run_from(source, StoredRows.none(), writer, plan, shards, progress)
        except Stopped:
            num_rows = builder.publish(writer, plan)
            bar.write(
                f"stopped: {num_rows} of {plan.num_rows} clips are in {builder.path}, which can be used as "
                "it is; run the same command again to go on"
            )
            raise
        seconds = float(bar.format_dict["elapsed"])
        builder.publish(writer, plan)
    return seconds


class RateEstimate:
    """Tells once, after the first batches, about how long the rest will take."""

    def __init__(self, num_clips: int, tell: Callable[[str], object], after: int = 5) -> None:
        self._num_clips, self._tell, self._after = num_clips, tell, after
        self._ticks, self._done = 0, 0
        self._start = time.monotonic()

    def __call__(self, clips: int) -> None:
        """Count finished clips; the first batch is warm-up and not timed."""
        self._ticks += 1
        if self._ticks == 1:
            self._start = time.monotonic()
            return
        self._done += clips
        if self._ticks == self._after and self._num_clips > self._done:
            rate = self._done / (time.monotonic() - self._start)
            minutes = (self._num_clips - self._done) / rate / 60
            self._tell(f"about {minutes:.1f} minutes to go at {rate:.1f} clips/s")


def plan_clips(plan: Plan, shards: list[int]) -> int:
    """Return the clips of the given shards."""
    return sum(len(plan.rows_of(shard)) for shard in shards)


def refuse_other_output(out: Path) -> None:
    """Stop before any work where the output exists and is no store.

    Raises:
        ValueError: so it is, or its name is neither a folder's nor an HDF5 file's.
    """
    if out.suffix != ".zarr" and not is_hdf5(out):
        raise ValueError(f"--out must end in .zarr (a folder) or .h5 (one HDF5 file), got {out}.")
    if out.exists():
        read_attributes(out)


def refuse_another_config(builder: Builder, out: Path) -> None:
    """Stop where `out` is a store of another config.

    Raises:
        ValueError: so it is; all differing keys are named.
    """
    if out.exists():
        has_waveforms = "waveforms" in files_of(out).array_names()
        builder.refuse_another_config(read_attributes(out), has_waveforms=has_waveforms)


def _announce(request: BuildRequest, builder: Builder, plan: Plan, shards: list[int], say: Say) -> None:
    num_clips = plan_clips(plan, shards)
    num_bytes = num_clips * builder.bytes_per_clip()
    if is_hdf5(request.out):  # the parts and the file that is made of them
        num_bytes += plan.num_rows * builder.bytes_per_clip()
    free = check_free_space(request.out, num_bytes)
    hours = plan.num_rows * request.config.clips.hop_seconds / 3600
    views = f" and {len(builder.views.numbers)} views of each" if builder.views.numbers else ""
    say(
        f"{len(plan.recordings)} recordings, {plan.num_rows} clips{views}, about {hours:.2f} hours; "
        f"{num_clips} clips to compute, {size_text(num_bytes)} on disk of {size_text(free)} free; "
        f"{request.config.backbone.name} on {request.device.type} ({builder.embedder.engine.name}, "
        f"{request.config.backbone.precision}), {request.workers} workers"
    )


def _plan(request: BuildRequest, work: Path, say: Say) -> Plan:
    joined, folders, kept = join_sources(request.sources[0], request.sources[1:])
    known = Known.of(work) if work.exists() else None
    if known is not None:
        _tell_gone(known, joined, request.prune, say)
        known = known.without_gone(joined.recordings) if request.prune else known
    for count in kept:
        say(
            f"external {count.name}: {count.num_given} recordings, {count.num_of_species} of the "
            f"main metadata's species, {count.num_kept} kept after removing known ids"
        )
        for species, number in count.per_species.items():
            say(f"  {species}: {number}")
    total = len(joined.recordings) + (len(known.gone_from(joined.recordings)) if known else 0)
    seen = SeenFiles(seen_path(request.out))
    try:
        with tqdm(total=total, desc="reading headers", unit="file", leave=False) as bar:
            return make_plan(
                joined, folders, request.config.clips.grid(),
                shard_clips=request.config.store.shard_clips, known=known, seen=seen, tick=bar.update,
            )  # fmt: skip
    finally:
        seen.close()


def _tell_gone(known: Known, joined: Metadata, prune: bool, say: Say) -> None:
    gone = known.gone_from(joined.recordings)
    if len(gone):
        names = [str(known.recordings["filename"].iloc[number]) for number in gone[:NAMED]]
        fate = (
            "their clips are removed"
            if prune
            else "their clips are kept, marked, and not trained on (--prune removes them)"
        )
        more = ", .." if len(gone) > NAMED else ""
        say(f"{len(gone)} recordings of the store are no longer in the metadata; {fate}: "
            f"{', '.join(names)}{more}")  # fmt: skip


def close(store: FeatureStore, say: Say) -> bool:
    """Say what the store holds; tell whether all audio is sound."""
    say(summary_text(store))
    facts = store_facts(store)
    return not facts["damaged"] + facts["unreadable"]
