"""The command line of `featurestore`. Heavy imports live inside the commands."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from shared.command_line import SET_HELP, UserError, one_line_errors, stoppable_exit

if TYPE_CHECKING:
    from featurestore.plan import Source
    from featurestore.views import ViewSections
    from shared.config import Sections
    from shared.features import FeatureConfig

TRAINER_SECTIONS = (
    "labels",
    "split",
    "sampler",
    "mixup",
    "head",
    "loss",
    "fit",
    "mixing",
    "finetune",
)


VIEWS_HELP = "Store V augmented versions of every clip as well, by [augment], for `trainer fit` to draw from."


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
@click.option(
    "--workers",
    type=click.IntRange(1),
    help="Threads that decode, and that embed, a core each; default: all.",
)
@click.option("--no-waveforms", is_flag=True, help="Store the maps only; no fine-tuning from such a store.")
@click.option("--views", type=click.IntRange(0), metavar="V", help=VIEWS_HELP)
@click.option("--prune", is_flag=True, help="Remove recordings that the metadata no longer has.")
@click.option("--strict", is_flag=True, help="Exit with status 1 if any recording is damaged or unreadable.")
@click.option("--allow-mixed", is_flag=True, help="Go on with a store begun on another machine or torch.")
@click.option("--break-lock", is_flag=True, help="Take a lock that another host left behind.")
@click.option("--set", "overrides", multiple=True, metavar="SECTION.KEY=VALUE", help=SET_HELP)
@one_line_errors
def build(
    config_path: Path | None, metadata: Path, audio: Path, out: Path, external: tuple[str, ...],
    weights: str | None, device: str, workers: int | None, no_waveforms: bool, views: int | None,
    prune: bool, strict: bool, allow_mixed: bool, break_lock: bool, overrides: tuple[str, ...],
) -> None:  # fmt: skip
    """Slice recordings into clips and compute their waveforms and embedding maps, once.

    Run it again after a kill, with corrected labels or with more recordings: it computes only
    what is missing. Ctrl-C and SIGTERM leave a store that can be used as it is.

    \b
    Example:
      featurestore build --metadata train_metadata.csv --audio train_audio \\
          --external 2022.csv=/data/2022/train_audio --out features.zarr
    """
    from featurestore.session import BuildRequest, build_store, close, refuse_other_output
    from shared.clip_array import num_processors
    from shared.embedder import choose_device

    config, view_sections = _configs(_sections(config_path, overrides, weights, views))
    refuse_other_output(out)
    request = BuildRequest(
        out=out,
        sources=_sources(metadata, audio, external, config),
        config=config,
        device=choose_device(device),
        workers=workers or num_processors(),
        with_waveforms=not no_waveforms,
        views=view_sections,
        allow_mixed=allow_mixed,
        prune=prune,
        break_lock=break_lock,
    )
    with stoppable_exit():
        is_sound = close(build_store(request, click.echo), click.echo)
    if strict and not is_sound:
        click.echo("--strict: some recordings are damaged or unreadable (named above)", err=True)
        sys.exit(1)


def _sections(
    path: Path | None, overrides: tuple[str, ...], weights: str | None, views: int | None
) -> Sections:
    """Return what the config file, --set and the options of their own say."""
    from shared.config import read_sections

    own = [f"backbone.weights={weights}"] if weights else []
    own += [f"views.count={views}"] if views is not None else []
    return read_sections(path, (*overrides, *own))


def _configs(sections: Sections) -> tuple[FeatureConfig, ViewSections]:
    """Return what decides the features, and what decides their views."""
    from featurestore.views import ViewSections
    from shared.config import as_sections, parse_config
    from shared.features import FeatureConfig

    views = as_sections(ViewSections())
    features = parse_config(FeatureConfig, sections, foreign=(*TRAINER_SECTIONS, *views))
    others = (*TRAINER_SECTIONS, *as_sections(features))
    return features, parse_config(ViewSections, sections, foreign=others)


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
@click.argument("store", type=click.Path(path_type=Path))
@click.option(
    "--audio", multiple=True, type=click.Path(path_type=Path), help="Check the recordings there too."
)
@one_line_errors
def verify(store: Path, audio: tuple[Path, ...]) -> None:
    """Check every byte of a store, and with --audio that its recordings are what it was made from.

    Names what is damaged; exit status 1 if anything is. A recording is looked for by its file name
    in every folder given.

    \b
    Example:
      featurestore verify features.zarr --audio train_audio --audio /data/2022/train_audio
    """
    from featurestore.verify import verify_store

    damage = verify_store(store, list(audio))
    for found in damage:
        click.echo(f"{found.what}: {found.detail}")
    click.echo(f"{store}: {len(damage)} damaged" if damage else f"{store}: sound")
    if damage:
        click.echo(f"bring it back with: featurestore repair {store} --audio DIR", err=True)
        sys.exit(1)


@main.command()
@click.argument("store", type=click.Path(path_type=Path))
@click.option(
    "--audio",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Where the recordings are, and where the backgrounds of the store's views are.",
)
@click.option("--weights", metavar="FILE", help="Backbone weights (.safetensors or .pth).")
@click.option(
    "--workers",
    type=click.IntRange(1),
    help="Threads that decode, and that embed, a core each; default: all.",
)
@click.option("--allow-mixed", is_flag=True, help="Go on although this machine's last bits differ.")
@click.option("--break-lock", is_flag=True, help="Take a lock that another host left behind.")
@one_line_errors
def repair(
    store: Path, audio: tuple[Path, ...], weights: str | None, workers: int | None, allow_mixed: bool,
    break_lock: bool,
) -> None:  # fmt: skip
    """Bring a damaged store back, byte for byte: recompute the damaged shards, restore the rest.

    \b
    Example:
      featurestore repair features.zarr --audio train_audio
    """
    from featurestore.repair import repair_store
    from shared.clip_array import num_processors

    with stoppable_exit():
        left = repair_store(
            store, list(audio), click.echo, weights=weights, workers=workers or num_processors(),
            allow_mixed=allow_mixed, break_lock=break_lock,
        )  # fmt: skip
    for found in left:
        click.echo(f"{found.what}: {found.detail}")
    click.echo(f"{store}: {len(left)} still damaged" if left else f"{store}: sound")
    if left:
        sys.exit(1)


@main.command()
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--break-lock", is_flag=True, help="Take a lock that another host left behind.")
@one_line_errors
def convert(source: Path, out: Path, break_lock: bool) -> None:
    """Turn a store in a folder into one HDF5 file, or back, losslessly.

    \b
    Example:
      featurestore convert features.zarr features.h5
    """
    from featurestore.containers import convert as convert_store
    from shared.lock import locked

    with locked(out, break_lock=break_lock):
        convert_store(source, out)
    click.echo(f"{out}: written")


@main.command()
@click.argument("source", type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The new store.")
@click.option(
    "--config", "config_path", type=click.Path(path_type=Path), help="TOML; default: as the source."
)
@click.option("--weights", metavar="FILE", help="Backbone weights (.safetensors or .pth).")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option("--workers", type=click.IntRange(1), help="Threads that embed, a core each; default: all.")
@click.option("--no-waveforms", is_flag=True, help="Store the maps only; no fine-tuning from such a store.")
@click.option("--views", type=click.IntRange(0), metavar="V", help=VIEWS_HELP)
@click.option("--allow-mixed", is_flag=True, help="Go on with a store begun on another machine or torch.")
@click.option("--break-lock", is_flag=True, help="Take a lock that another host left behind.")
@click.option("--set", "overrides", multiple=True, metavar="SECTION.KEY=VALUE", help=SET_HELP)
@one_line_errors
def embed(
    source: Path, out: Path, config_path: Path | None, weights: str | None, device: str,
    workers: int | None, no_waveforms: bool, views: int | None, allow_mixed: bool, break_lock: bool,
    overrides: tuple[str, ...],
) -> None:  # fmt: skip
    """Compute another backbone's maps, or other stages, from a store's waveforms.

    Nothing is decoded again; rows, recordings and labels are those of the source, and without --config
    the log-mel and the backbone too, but for what --set changes.

    \b
    Example:
      featurestore embed features.zarr --out early.zarr --set backbone.stages=blocks.4
    """
    from featurestore.embed import EmbedRequest, embed_store, own_sections
    from featurestore.session import close, refuse_other_output
    from shared.clip_array import num_processors
    from shared.embedder import choose_device

    refuse_other_output(out)
    given = _sections(config_path, overrides, weights, views)
    config, view_sections = _configs(own_sections(source, given, has_file=config_path is not None))
    request = EmbedRequest(
        source=source,
        out=out,
        config=config,
        device=choose_device(device),
        workers=workers or num_processors(),
        with_waveforms=not no_waveforms,
        views=view_sections,
        allow_mixed=allow_mixed,
        break_lock=break_lock,
    )
    with stoppable_exit():
        close(embed_store(request, click.echo), click.echo)


@main.command()
@click.argument("store", type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The page, as in data.html.")
@click.option("--clips", default=3, show_default=True, help="Clips to see and hear per species; 0: none.")
@click.option("--max-mb", default=20.0, show_default=True, help="Megabytes of clips, at most.")
@click.option(
    "--quick",
    is_flag=True,
    help="Neither verify, nor look for near-duplicates: reads little.",
)
@click.option("--png", type=click.Path(path_type=Path), help="Folder for the charts as png, for papers.")
@click.option("--svg", type=click.Path(path_type=Path), help="Folder for the charts as svg.")
@one_line_errors
def report(
    store: Path, out: Path, clips: int, max_mb: float, quick: bool, png: Path | None, svg: Path | None
) -> None:
    """Write one HTML page of what is in a store: look at the data, and listen to it.

    Species and their long tail, durations, ratings, places, years, licences, problems, copies, some clips
    of every species as the network sees them, and what `verify` says. The page opens from the file, anywhere.

    \b
    Example:
      featurestore report features.zarr --out data.html --svg figures
    """
    from featurestore.report import ReportRequest, write_report

    write_report(
        ReportRequest(
            store=store, out=out, clips_per_species=clips, max_megabytes=max_mb, quick=quick,
            png=png, svg=svg,
        ),
        click.echo,
    )  # fmt: skip


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
