"""What augmented views cost: the build that makes them, and the reading of batches drawn from them."""

import tempfile
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
from builds import CPU, build, config_of, plan_of, write_recordings
from measuring import Numbers, median_seconds, show
from reads import write_zarr

from featurestore.views import Views, ViewsConfig, ViewSections
from shared.clip_array import num_processors
from shared.embedder import Embedder
from shared.store import FeatureStore
from trainer.map_source import Maps, ViewedMaps

COUNTS = (0, 1, 2, 4, 8)
NUM_RECORDINGS = 32
REPEATS = 3
BATCH, BATCHES = 64, 200
SHAPE = (320, 7, 10)


def views() -> Numbers:
    """Builds with 0 to 8 views of the default policy, and random batches of a store with 8."""
    embedder = Embedder(config_of("auto"), CPU, streams=num_processors())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_recordings(folder, NUM_RECORDINGS)
        plan = plan_of(folder, embedder.config)
        makers = {
            count: Views(ViewSections(views=ViewsConfig(count=count)), embedder.grid, CPU) for count in COUNTS
        }
        works = {str(count): partial(build, plan, embedder, folder, maker) for count, maker in makers.items()}
        seconds = median_seconds(works, repeats=REPEATS)
    plain = seconds["0"]
    rows = [
        [name, f"{1e3 * value / plan.num_rows:.1f}", f"{value / plain:.2f}",
         f"{value / plain / (int(name) + 1):.2f}"]
        for name, value in seconds.items()
    ]  # fmt: skip
    title = f"A build of {plan.num_rows} clips with views, {embedder.engine.name}, {num_processors()} cores"
    show(title, ["views", "ms per clip", "x none", "per map, x none"], rows)
    numbers = {f"views.build_{count}_over_none": value / plain for count, value in seconds.items()}
    return numbers | reading()


def read_all(maps: Maps, drawn: np.ndarray) -> None:
    """Read batch after batch, and let go of each."""
    for rows in drawn:
        maps.read(rows)


def reading() -> Numbers:
    """Random batches of maps drawn from 9 arrays of views, and from one array of as many rows; warm cache."""
    count, num_clips = COUNTS[-1], 512
    values = np.random.default_rng(0).standard_normal((num_clips * (count + 1), *SHAPE)).astype(np.float16)
    rng = np.random.default_rng(1)
    drawn = np.sort(rng.integers(0, len(values), (BATCHES, BATCH)), axis=1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        one = write_zarr(folder / "one.zarr", {"maps/m": values}).array("maps/m", len(values))
        parts = dict(
            zip(
                ("maps/m", *(f"views/{n}/m" for n in range(1, count + 1))),
                np.split(values, count + 1),
                strict=True,
            )
        )
        files = write_zarr(folder / "views.zarr", parts)
        arrays = [files.array(part, num_clips) for part in parts]
        store = cast(
            FeatureStore, SimpleNamespace(view=arrays.__getitem__, num_rows=num_clips, maps=arrays[0])
        )
        viewed = ViewedMaps(store, count)
        works = {
            "one array": partial(read_all, one, drawn),
            f"{count + 1} arrays": partial(read_all, viewed, drawn),
        }
        seconds = median_seconds(works)
    rates = {name: BATCHES * BATCH / value for name, value in seconds.items()}
    rows = [[name, f"{rate:,.0f}", f"{rate / rates['one array']:.2f}"] for name, rate in rates.items()]
    show(f"Random batches of {BATCH} maps of {'x'.join(map(str, SHAPE))}", ["from", "clips/s", "x one"], rows)
    return {"views.read_over_one_array": rates[f"{count + 1} arrays"] / rates["one array"]}
