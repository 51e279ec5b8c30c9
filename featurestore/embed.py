"""Another backbone's maps, or other stages, from the waveforms of a store."""

from dataclasses import dataclass
from pathlib import Path

from featurestore.build import Builder, check_free_space, moves_rows, store_attributes
from featurestore.containers import finish_container, work_folder
from featurestore.plan import Plan
from featurestore.session import (
    Say,
    StoreRequest,
    builder_for,
    plan_clips,
    refuse_another_config,
    run_to_the_end,
)
from featurestore.store_plan import WaveformSource, plan_of_tables
from featurestore.summary import stage_table
from shared.command_line import size_text
from shared.config import Sections, differences
from shared.lock import locked
from shared.stopping import stoppable
from shared.store import TABLES, FeatureStore
from shared.store_writer import StoreWriter


@dataclass(frozen=True, kw_only=True)
class EmbedRequest(StoreRequest):
    """What `featurestore embed` was asked to do."""

    source: Path


def own_sections(source: Path, given: Sections, *, has_file: bool) -> Sections:
    """Return the given config with the source's clips and shards: its rows are the new store's.

    has_file: whether a config file was given; without one, all that is not given is as in the source.

    Raises:
        ValueError: the config asks for other clips.
    """
    config = FeatureStore(source).attributes["config"]
    if not has_file:
        own = {name: config[name] | given.get(name, {}) for name in config}
        if own["backbone"]["name"] != config["backbone"]["name"]:  # another network has its own
            own["backbone"] = given["backbone"]
        given = given | own
    for name in ("clips", "store"):
        theirs = config[name]
        asked = (
            {key: given[name].get(key, value) for key, value in theirs.items()} if name in given else theirs
        )
        lines = differences({name: theirs}, {name: asked})
        if lines:
            raise ValueError(
                f"the rows of {source} are fixed; these cannot change (store -> config): {'; '.join(lines)}. "
                "Build from the audio for other clips."
            )
    return given | {"clips": config["clips"], "store": config["store"]}


def _refuse_other_rows(builder: Builder, writer: StoreWriter, plan: Plan, request: EmbedRequest) -> None:
    """Refuse to write over a store of other rows: embedding only adds.

    Raises:
        ValueError: so it is.
    """
    if moves_rows(writer, plan, builder.all_commits(writer)):
        raise ValueError(
            f"{request.out} holds other rows than {request.source}: another store's, or those from before "
            "rows were removed. Give another --out, or remove it first."
        )


def embed_store(request: EmbedRequest, say: Say) -> FeatureStore:
    """Compute the new store, or go on with it, and return it.

    Raises:
        ValueError: the source has no waveforms, or what `build` refuses too.
    """
    source = FeatureStore(request.source)
    if source.waveforms is None:
        raise ValueError(
            f"{request.source} was built with --no-waveforms: there is nothing to embed from. "
            "Build it again without that."
        )
    with locked(request.out, break_lock=request.break_lock), stoppable():
        builder = builder_for(request)
        embedder = builder.embedder
        builder.views.refuse_own(source.recordings)
        refuse_another_config(builder, request.out)
        work_folder(request.out)
        tables = {name: getattr(source, name) for name in TABLES}
        plan = plan_of_tables(tables, source.attributes, [None] * len(source.recordings))
        attributes = store_attributes(embedder, source.attributes["taxonomy"], builder.views.attributes)
        if source.num_views and not builder.views.numbers:
            say(
                f"the {source.num_views} views of {request.source} are not taken over: --views makes new ones"
            )
        shards = list(range(plan.num_shards))
        if builder.path.exists():
            existing = builder.open(attributes)
            _refuse_other_rows(builder, existing, plan, request)
            shards = builder.pending(existing, plan)
        num_bytes = plan_clips(plan, shards) * builder.bytes_per_clip()
        free = check_free_space(request.out, num_bytes)
        say(
            f"{plan_clips(plan, shards)} of {plan.num_rows} clips to embed from {request.source}, "
            f"{size_text(num_bytes)} on disk of {size_text(free)} free; "
            f"{request.config.backbone.name} ({embedder.engine.name}), {request.workers} workers"
        )

        def opened() -> StoreWriter:
            writer = builder.open(attributes)
            if shards:
                builder.admit_numerics(writer, allow_mixed=request.allow_mixed)
            return writer

        commits = {shard: commit for shard in shards if (commit := source.files.commit(shard))}
        if len(commits) < len(shards):
            raise ValueError(
                f"{request.source} lacks the commits of {len(shards) - len(commits)} shards: it is damaged; "
                f"`featurestore repair {request.source} --audio DIR` brings it back."
            )
        waveforms = WaveformSource(plan, source.waveforms, commits, embedder.batch_clips)
        seconds = run_to_the_end(builder, opened, plan, shards, waveforms.batches(shards))
        finish_container(request.out)
        if shards:
            say(stage_table(builder.clock, plan_clips(plan, shards), seconds, builder.threads))
    return FeatureStore(request.out)
