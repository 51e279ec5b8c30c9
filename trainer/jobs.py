"""Fits over one store: each of one config and some held-out folds, several side by side."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import torch

from shared.store import FeatureStore
from shared.taxonomy import Taxonomy
from trainer.config import LabelConfig, TrainConfig
from trainer.data import ClipData
from trainer.fit import Prepared, find_folds, fit, prepare
from trainer.map_source import MapSource, choose_source
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
    """Fits over one store; what they share is loaded once: tables, targets, folds, and held maps."""

    def __init__(
        self, features: Path, taxonomy: Taxonomy, device: torch.device, folds: Folds | None = None
    ) -> None:
        self.features, self.taxonomy, self.device = features, taxonomy, device
        self.folds = folds
        self._sources: dict[str, MapSource] = {}
        self._data: dict[tuple[str, LabelConfig], ClipData] = {}

    def data(self, config: TrainConfig) -> ClipData:
        """Return the store's clips with the targets and the stage that a config asks for."""
        stage = config.head.stage
        if (stage, config.labels) not in self._data:
            store = FeatureStore(self.features, stage)
            if stage not in self._sources:
                self._sources[stage] = choose_source(store.maps, self.device)
            data = ClipData(store, self.taxonomy, config.labels, self._sources[stage])
            self._data[stage, config.labels] = data
        return self._data[stage, config.labels]

    def find_folds(self, config: TrainConfig, step_done: Callable[[int], object] = ignore) -> Folds:
        """Return the folds, looked for once: all fits share them."""
        if self.folds is None:
            self.folds = find_folds(self.data(config), config, step_done)
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
            self.prepare(job), job.config, job.path, self.device, resume=resume, say=say, step_done=step_done
        )


def run_jobs(fitter: Fitter, jobs: Sequence[Job], *, workers: int, resume: bool) -> Iterator[Job]:
    """Run jobs and yield each when it is done.

    On a GPU one after the other in this process, which holds the maps; on a CPU in processes of one
    thread each: small heads gain little from a second thread, and the bytes do not depend on their
    number.

    Raises:
        ValueError: a job failed; names it.
    """
    if fitter.device.type != "cpu":
        for job in jobs:
            fitter.fit(job, resume=resume)
            yield job
        return
    arguments = (fitter.features, fitter.taxonomy, fitter.device, fitter.folds)
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(workers, len(jobs)), context, _start_worker, arguments)
    try:
        waiting = {pool.submit(_run_job, job, resume): job for job in jobs}
        for done in as_completed(waiting):
            try:
                done.result()
            except (ValueError, OSError) as error:
                raise ValueError(f"{waiting[done].path}: {error}") from error
            yield waiting[done]
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in multiprocessing.active_children():
            process.terminate()
        raise
    pool.shutdown()


_fitter: Fitter | None = None


def _start_worker(features: Path, taxonomy: Taxonomy, device: torch.device, folds: Folds | None) -> None:
    global _fitter
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    threading.Thread(target=_leave_with_parent, name="parent", daemon=True).start()
    torch.set_num_threads(1)
    _fitter = Fitter(features, taxonomy, device, folds)


def _leave_with_parent() -> None:
    """A worker whose parent was killed would wait for its next job for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _run_job(job: Job, resume: bool) -> None:
    assert _fitter is not None
    _fitter.fit(job, resume=resume)
