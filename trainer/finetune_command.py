"""What `trainer finetune` does and says: one head's run, or every fold of a run of folds."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from tqdm import tqdm

from shared.config import as_sections, digest, parse_config, read_sections
from shared.features import FeatureConfig
from shared.store import FeatureStore
from trainer.config import TrainConfig, TuneConfig
from trainer.evaluate import check_same_features, score_recordings, waveform_data
from trainer.finetune import NetworkRecipe, folds_of_run
from trainer.fit import Prepared, fit, prepare, steps_per_epoch
from trainer.fit_command import Way, say_folded
from trainer.folded import write_folded
from trainer.jobs import Job
from trainer.loop import Precision
from trainer.network import Network
from trainer.run import Run, claim_folder, load_run, read_facts, write_facts


@dataclass(frozen=True)
class Tuning:
    """One head's run to tune: what is prepared, with which config, and where to."""

    init: Run
    config: TrainConfig
    recipe: NetworkRecipe
    prepared: Prepared
    out: Path


def read_tune_config(path: Path | None, overrides: tuple[str, ...]) -> TuneConfig:
    """Return [augment], [mixing] and [finetune] of a file and of --set.

    The file's other sections are passed over: they are the head's, whose run says what they were.

    Raises:
        ValueError: errors in them, or a --set of a section that is the head's.
    """
    known = {**as_sections(FeatureConfig()), **as_sections(TrainConfig())}
    for section in read_sections(None, overrides):
        if section in known:
            raise ValueError(
                f"--set {section}: labels, split, head and features are those of the run that --init names; "
                "what can be set here is augment, mixing and finetune."
            )
    return parse_config(TuneConfig, read_sections(path, overrides), foreign=known)


def finetune(features: Path, init: Path, tune: TuneConfig, way: Way, device: torch.device) -> None:
    """Tune a head's run, or each of a run of folds and join what they predict.

    Raises:
        ValueError: the run or the store cannot be tuned from, with the remedy.
    """
    facts = read_facts(init)
    if facts.get("kind") != "folds":
        tuning = _prepared(features, load_run(init), tune, way.out, device)
        _tune(tuning, way, device)
        way.say(f"{way.out}: next: trainer evaluate {init} {way.out}")
        return
    if not facts.get("runs"):
        raise ValueError(f"{init} holds predictions and no heads; name a run of `trainer fit --folds`.")
    tunings = [
        _prepared(features, load_run(init / name), tune, way.out / name, device) for name in facts["runs"]
    ]
    bound_to = digest([as_sections(tune), [tuning.recipe.facts()["init_sha256"] for tuning in tunings]])
    claim_folder(way.out, "folds", bound_to, resume=way.resume)
    for tuning in tunings:
        way.say(f"{tuning.out.name}:")
        _tune(tuning, way, device)
    first = tunings[0]
    jobs = [Job(tuning.out, tuning.config, tuning.prepared.held_out) for tuning in tunings]
    leakage = json.loads((init / "leakage.json").read_text(encoding="utf-8"))
    config = first.init.train
    folds = first.prepared.folds
    say_folded(write_folded(way.out, jobs, config, first.prepared.data, folds, leakage, tune), way)


def _prepared(features: Path, init: Run, tune: TuneConfig, out: Path, device: torch.device) -> Tuning:
    if init.tune is not None:
        raise ValueError(f"{init.path} is tuned already; name the head's run that it came from.")
    store = FeatureStore(features, str(init.facts["stage"]))
    check_same_features(init, store)
    data = waveform_data(store, init.taxonomy, init.train.labels, device)
    config = replace(init.train, fit=tune.finetune)
    prepared = prepare(data, folds_of_run(init, store), config, init.facts["held_out"])
    return Tuning(init, config, NetworkRecipe(init, tune, device), prepared, out)


def _tune(tuning: Tuning, way: Way, device: torch.device) -> None:
    prepared, config = tuning.prepared, tuning.config
    steps = steps_per_epoch(prepared, config) * config.fit.epochs
    way.say(
        f"{len(prepared.training_rows)} clips to train on, {len(prepared.validation_rows)} held out; "
        f"{config.fit.epochs} epochs, the last {config.fit.unfreeze_stages} stages of "  # type: ignore[attr-defined]
        f"{tuning.init.features.backbone.name} on {device.type}"
    )
    start = None
    is_finished = (tuning.out / "run.json").exists() and read_facts(tuning.out).get("finished")
    if len(prepared.validation_rows) and not is_finished:
        start = _score_of_start(tuning, device)
        way.say(f"epoch   0  macro ROC-AUC {start['macro_roc_auc']:.4f}  top-1 {start['top1']:.4f}")
    with tqdm(total=steps, unit="step", desc="tuning", leave=False) as bar:
        fit(
            prepared, config, tuning.out, device,
            recipe=tuning.recipe, resume=way.resume, say=bar.write, step_done=bar.update,
        )  # fmt: skip
    if start is not None:
        write_facts(tuning.out, {**read_facts(tuning.out), "start": start})


def _score_of_start(tuning: Tuning, device: torch.device) -> dict[str, float]:
    """Score the untrained network: what the head's run scored, but for the rounding of stored maps."""
    model = tuning.recipe.model(tuning.prepared, tuning.config, device)
    assert isinstance(model, Network)
    rows = tuning.prepared.validation_rows
    table = score_recordings(model, tuning.prepared.data, rows, Precision(device))[1].table(interval=False)
    return {name: float(table[name]) for name in ("macro_roc_auc", "cmap", "top1")}
