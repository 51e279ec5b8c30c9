"""The command line of `featurestore`. Heavy imports live inside the commands."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from shared.command_line import SET_HELP, UserError, one_line_errors, size_text

if TYPE_CHECKING:
    from featurestore.build import Builder
    from featurestore.plan import Plan, Source
    from shared.features import FeatureConfig
    from shared.store import StoreWriter

TRAINER_SECTIONS = ("labels", "split", "sampler", "mixup", "head", "loss", "fit")


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="dawnchorus")
def main() -> None:
    """Recordings in, store out: every clip's waveform and frozen embedding map, computed once.

    \b
    Example:
      featurestore synth demo/data
      featurestore build --metadata demo/data/train_metadata.csv \\
          --audio demo/data/train_audio --config configs/demo.toml --out demo/features.zarr
      featurestore info demo/features.zarr
    """


@main.command()
@click.option("--config", "config_path", type=click.Path(path_type=Path), help="TOML; default: the baseline.")
@click.option(
    "--metadata",
    required=True,
    type=click.Path(path_type=Path),
    help="CSV, one row per recording or clip.",
)
@click.option(
    "--audio",
    required=True,
    type=click.Path(path_type=Path),
    help="Folder that file names start from.",
)
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The store, as in features.zarr.")
@click.option(
    "--external",
    multiple=True,
    metavar="META.csv=DIR",
    help="Recordings of an earlier year: those of the main metadata's species whose xeno-canto id is new.",
)
@click.option("--weights", metavar="FILE", help="Backbone weights (.safetensors or .pth).")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option("--no-waveforms", is_flag=True, help="Store the maps only; no fine-tuning from such a store.")
@click.option("--strict", is_flag=True, help="Exit with status 1 if any recording is damaged or unreadable.")
@click.option("--allow-mixed", is_flag=True, help="Go on with a store begun on another machine or torch.")
@click.option("--set", "overrides", multiple=True, metavar="SECTION.KEY=VALUE", help=SET_HELP)
@one_line_errors
def build(
    config_path: Path | None, metadata: Path, audio: Path, out: Path, external: tuple[str, ...],
    weights: str | None, device: str, no_waveforms: bool, strict: bool, allow_mixed: bool,
    overrides: tuple[str, ...],
) -> None:  # fmt: skip
    """Slice recordings into clips and compute their waveforms and embedding maps, once.

    Run it again after a kill, with corrected labels or with more recordings: it computes only
    what is missing.

    \b
    Example:
      featurestore build --metadata train_metadata.csv --audio train_audio \\
          --external 2022.csv=/data/2022/train_audio --out features.zarr
    """
    from featurestore.build import Builder, check_free_space, store_attributes
    from shared.embedder import Embedder, choose_device

    config = _config(config_path, (*overrides, *([f"backbone.weights={weights}"] if weights else ())))
    sources = _sources(metadata, audio, external, config)
    _refuse_other_output(out)
    torch_device = choose_device(device)
    embedder = Embedder(config, torch_device)
    builder = Builder(out, embedder, shard_clips=config.store.shard_clips, with_waveforms=not no_waveforms)
    plan = _plan(sources, out, config)
    if not plan.num_rows:
        first = plan.recordings.iloc[0]
        raise ValueError(
            f"none of the {len(plan.recordings)} recordings can be read; the first: "
            f"{first['filename']}: {first['reason']}."
        )
    taxonomy = sources[0].metadata.primary_species()
    attributes = store_attributes(embedder, builder.numerics(), taxonomy)
    shards = list(range(plan.num_shards))
    if out.exists():
        shards = builder.pending(builder.open(attributes), plan)
    num_clips = sum(len(plan.rows_of(shard)) for shard in shards)
    num_bytes = num_clips * builder.bytes_per_clip()
    free = check_free_space(out, num_bytes)
    hours = plan.num_rows * config.clips.hop_seconds / 3600
    click.echo(
        f"{len(plan.recordings)} recordings, {plan.num_rows} clips, about {hours:.2f} hours; "
        f"{num_clips} clips to compute, {size_text(num_bytes)} on disk of {size_text(free)} free; "
        f"{config.backbone.name} on {torch_device.type}"
    )
    writer = builder.open(attributes)
    if shards:
        builder.admit_numerics(writer, allow_mixed=allow_mixed)
    writer.attributes["taxonomy"] = taxonomy
    _run(builder, writer, plan, shards)
    _close(out, strict)


def _config(path: Path | None, overrides: tuple[str, ...]) -> FeatureConfig:
    from shared.config import parse_config, read_sections
    from shared.features import FeatureConfig

    return parse_config(FeatureConfig, read_sections(path, overrides), foreign=TRAINER_SECTIONS)


def _sources(metadata: Path, audio: Path, external: tuple[str, ...], config: FeatureConfig) -> list[Source]:
    from featurestore.plan import Source
    from shared.metadata import read_metadata

    pairs = [(metadata, audio, "main")]
    for text in external:
        csv, equals, folder = text.partition("=")
        if not equals:
            raise ValueError(f"--external takes META.csv=DIR, got {text!r}.")
        pairs.append((Path(csv), Path(folder), Path(csv).stem))
    grid = config.clips.grid()
    for _, folder_path, _ in pairs:
        if not folder_path.is_dir():
            raise ValueError(f"audio folder {folder_path} does not exist.")
    return [
        Source(read_metadata(csv, grid, source=name, audio=folder), folder) for csv, folder, name in pairs
    ]


def _refuse_other_output(out: Path) -> None:
    """Stop before any work where the output exists and is no store."""
    from shared.store import read_attributes

    if out.suffix != ".zarr":
        raise ValueError(f"--out must end in .zarr, got {out}.")
    if out.exists():
        read_attributes(out)


def _plan(sources: list[Source], out: Path, config: FeatureConfig) -> Plan:
    from tqdm import tqdm

    from featurestore.plan import join_sources, make_plan
    from shared.store import FeatureStore, read_attributes

    known: list[tuple[str, str]] = []
    if out.exists() and read_attributes(out)["tables"]:
        there = FeatureStore(out).recordings
        known = list(zip(there["source"], there["filename"], strict=True))
    joined, folders, kept = join_sources(sources[0], sources[1:])
    now = set(zip(joined.recordings["source"], joined.recordings["filename"], strict=True))
    gone = [filename for source, filename in known if (source, filename) not in now]
    if gone:
        click.echo(
            f"{len(gone)} recordings of the store are no longer in the metadata; their clips will be "
            f"removed: {', '.join(gone[:5])}{', ..' if len(gone) > 5 else ''}"
        )
    for count in kept:
        click.echo(
            f"external {count.name}: {count.num_given} recordings, {count.num_of_species} of the "
            f"main metadata's species, {count.num_kept} kept after removing known ids"
        )
        for species, number in count.per_species.items():
            click.echo(f"  {species}: {number}")
    with tqdm(total=len(joined.recordings), desc="reading headers", unit="file", leave=False) as bar:
        return make_plan(
            joined, folders, config.clips.grid(),
            shard_clips=config.store.shard_clips, known_order=known, tick=bar.update,
        )  # fmt: skip


def _run(builder: Builder, writer: StoreWriter, plan: Plan, shards: list[int]) -> None:
    """Compute what is missing under a progress bar, then publish."""
    from tqdm import tqdm

    from featurestore.build import RateEstimate

    num_clips = sum(len(plan.rows_of(shard)) for shard in shards)
    grid = builder.embedder.grid
    hours_per_clip = grid.hop_samples / grid.sample_rate_hz / 3600
    with tqdm(total=num_clips, unit="clip", desc="embedding", disable=not num_clips) as bar:
        estimate = RateEstimate(num_clips, bar.write)

        def progress(clips: int) -> None:
            estimate(clips)
            bar.set_postfix_str(f"{(bar.n + clips) * hours_per_clip:.2f} audio-hours", refresh=False)
            bar.update(clips)

        builder.run(writer, plan, shards, progress)
    builder.publish(writer, plan)


def _close(out: Path, strict: bool) -> None:
    """Print the summary; under --strict bad audio decides the exit status."""
    from featurestore.summary import store_facts, summary_text
    from shared.store import FeatureStore

    store = FeatureStore(out)
    click.echo(summary_text(store))
    facts = store_facts(store)
    if strict and facts["damaged"] + facts["unreadable"]:
        click.echo("--strict: some recordings are damaged or unreadable (named above)", err=True)
        sys.exit(1)


@main.command()
@click.argument("store", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="One flat JSON object.")
@click.option("--all", "all_problems", is_flag=True, help="Name every recording that is not ok.")
@one_line_errors
def info(store: Path, as_json: bool, all_problems: bool) -> None:
    """Say what is in a store.

    \b
    Example:
      featurestore info features.zarr --json
    """
    from featurestore.summary import store_facts, summary_text
    from shared.store import FeatureStore

    opened = FeatureStore(store)
    if as_json:
        click.echo(json.dumps(store_facts(opened), indent=2))
    else:
        click.echo(summary_text(opened, all_problems=all_problems))


@main.command()
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--species", "num_species", default=8, show_default=True)
@click.option("--recordings", "num_recordings", default=160, show_default=True)
@click.option("--soundscapes", "num_soundscapes", default=2, show_default=True)
@click.option("--seed", default=0, show_default=True)
@one_line_errors
def synth(out: Path, num_species: int, num_recordings: int, num_soundscapes: int, seed: int) -> None:
    """Write a synthetic data set in BirdCLEF layout, with known truth, from a seed.

    \b
    Example:
      featurestore synth demo/data --species 8 --recordings 160
    """
    from featurestore.synthetic import write_data_set

    if out.exists() and any(out.iterdir()):
        raise UserError(f"{out} exists and is not empty; give a new folder.")
    click.echo(write_data_set(out, num_species, num_recordings, num_soundscapes, seed))
