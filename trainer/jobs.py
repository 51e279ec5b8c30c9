"""Fits over one store: each of one config and some held-out folds, several side by side."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

import torch

from shared.store import FeatureStore
from shared.taxonomy import Taxonomy
from trainer.config import LabelConfig, TrainConfig
from trainer.data import ClipData
from trainer.fit import HeadRecipe, fit
from trainer.map_source import MapSource, ViewedMaps, choose_source, views_of
from trainer.prepare import Prepared, find_folds, prepare
from trainer.run import Run
from trainer.splits import Folds


@dataclass(frozen=True)
class Job:
    """One fit: where to, of what config, and which folds it must not see."""

    path: Path
    config: TrainConfig
    held_out: tuple[int, ...]


def ignore(_: object) -> None:
    """Take what somebody else may want to show."""


class Fitter:
    """Fits over one store in one process; what they share is loaded once: tables, targets, folds, held maps.

    readers: how many such processes there are, which share what memory is free.
    """

    def __init__(
        self, features: Path, taxonomy: Taxonomy, device: torch.device, folds: Folds | None = None,
        readers: int = 1,
    ) -> None:  # fmt: skip
        self.features, self.taxonomy, self.device = features, taxonomy, device
        self.folds, self._readers = folds, readers
        self._sources: dict[tuple[str, int], MapSource] = {}
        self._data: dict[tuple[str, int, LabelConfig], ClipData] = {}

    def data(self, config: TrainConfig) -> ClipData:
        """Return the store's clips with the targets and the stage that a config asks for."""
        source = config.head.stage, config.sampler.views
        if (*source, config.labels) not in self._data:
            store = FeatureStore(self.features, config.head.stage)
            if source not in self._sources:
                num_views = views_of(store, config.sampler.views)
                maps = ViewedMaps(store, num_views) if num_views else store.maps
                self._sources[source] = choose_source(maps, self.device, readers=self._readers)
            data = ClipData(store, self.taxonomy, config.labels, self._sources[source])
            self._data[*source, config.labels] = data
        return self._data[*source, config.labels]

    def find_folds(self, config: TrainConfig, step_done: Callable[[int], object] = ignore) -> Folds:
        """Return the folds, looked for once: all fits share them, whatever stage they read."""
        if self.folds is None:
            first_stage = ClipData(FeatureStore(self.features), self.taxonomy, config.labels)
            self.folds = find_folds(first_stage, config, step_done)
        return self.folds

    def prepare(self, job: Job) -> Prepared:
        """Put the recordings on their sides."""
        return prepare(self.data(job.config), self.find_folds(job.config), job.config, job.held_out)

    def fit(
        self, job: Job, *, resume: bool, say: Callable[[str], object] = ignore,
        step_done: Callable[[int], object] = ignore,
    ) -> Run:  # fmt: skip
        """Prepare and train."""
        return fit(
            self.prepare(job), job.config, job.path, self.device,
            recipe=HeadRecipe(), resume=resume, say=say, step_done=step_done,
        )  # fmt: skip


def run_jobs(
    fitter: Fitter, jobs: Sequence[Job], *, workers: int, resume: bool
) -> Iterator[tuple[Job, str | None]]:
    """Run jobs and yield each when it is done, with what went wrong.

    On a GPU one after the other in this process, which holds the maps; on a CPU in processes of one
    thread each: small heads gain little from a second thread, and the bytes do not depend on their
    number.

    Raises:
        ValueError: a process was killed.
    """
    if fitter.device.type != "cpu":
        for job in jobs:
            yield job, _try(fitter, job, resume)
        return
    workers = min(workers, len(jobs))
    arguments = (fitter.features, fitter.taxonomy, fitter.device, fitter.folds, workers)
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _start_worker, arguments)
    try:
        waiting = {pool.submit(_run_job, job, resume): job for job in jobs}
        for done in as_completed(waiting):
            yield waiting[done], done.result()
    except BrokenProcessPool as error:
        raise ValueError(
            "a process that trained was killed, perhaps for lack of memory; go on with --resume and fewer "
            "--workers."
        ) from error
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in multiprocessing.active_children():
            process.terminate()


def _try(fitter: Fitter, job: Job, resume: bool) -> str | None:
    """Fit; return what went wrong: one setting that diverges must not stop the others."""
    try:
        fitter.fit(job, resume=resume)
    except (ValueError, OSError, RuntimeError, MemoryError) as error:
        return f"{type(error).__name__}: {error}" if isinstance(error, RuntimeError) else str(error)
    return None


_fitter: Fitter | None = None


def _start_worker(
    features: Path, taxonomy: Taxonomy, device: torch.device, folds: Folds | None, workers: int
) -> None:
    global _fitter
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    threading.Thread(target=_leave_with_parent, name="parent", daemon=True).start()
    torch.set_num_threads(1)
    _fitter = Fitter(features, taxonomy, device, folds, workers)


def _leave_with_parent() -> None:
    """A worker whose parent was killed would wait for its next job for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _run_job(job: Job, resume: bool) -> str | None:
    assert _fitter is not None
    return _try(_fitter, job, resume)
