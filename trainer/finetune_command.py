"""What `trainer finetune` does and says: one head's run, or every fold of a run of folds."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from tqdm import tqdm

from shared.augment_policy import Policy
from shared.config import as_sections, digest, parse_config, read_sections
from shared.features import FeatureConfig
from shared.store import VIEWS, FeatureStore
from trainer.config import TrainConfig, TuneConfig
from trainer.evaluate import check_same_features, score_recordings, waveform_data
from trainer.finetune import NetworkRecipe, folds_of_run
from trainer.fit import fit, steps_per_epoch
from trainer.fit_command import Way, say_folded
from trainer.folded import write_folded
from trainer.jobs import Job
from trainer.loop import Precision
from trainer.network import Network
from trainer.prepare import Prepared, prepare
from trainer.run import Run, claim_folder, load_run, read_facts, refuse_full, write_json


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
    known = {*as_sections(FeatureConfig()), VIEWS, *as_sections(TrainConfig())}
    for section in read_sections(None, overrides):
        if section in known:
            raise ValueError(
                f"--set {section}: labels, split, head and features are those of the run that --init names; "
                "what can be set here is augment, mixing and finetune."
            )
    return parse_config(TuneConfig, read_sections(path, overrides), foreign=known)


def finetune(
    features: Path, init: Path, tune: TuneConfig, way: Way, device: torch.device, weights: str = ""
) -> None:
    """Tune a head's run, or each of a run of folds and join what they predict.

    Raises:
        ValueError: the run or the store cannot be tuned from, with the remedy.
    """
    facts = read_facts(init)
    is_folds = facts.get("kind") == "folds"
    if is_folds and not facts.get("runs"):
        raise ValueError(f"{init} holds predictions and no heads; name a run of `trainer fit --folds`.")
    names = facts["runs"] if is_folds else [""]
    runs = [load_run(init / name) for name in names]
    policy = _policy(tune, runs[0], features)
    tunings = [
        _prepared(features, run, way.out / name, NetworkRecipe(run, tune, policy, device, weights), device)
        for run, name in zip(runs, names, strict=True)
    ]
    if not is_folds:
        _tune(tunings[0], way, device)
        scored = len(tunings[0].prepared.validation_rows)
        way.say(
            f"{way.out}: next: " + (f"trainer evaluate {init} {way.out}" if scored else "trainer predict")
        )
        return
    leakage = json.loads((init / "leakage.json").read_text(encoding="utf-8"))
    bound_to = digest([tuning.recipe.facts() for tuning in tunings])
    claim_folder(way.out, "folds", bound_to, resume=way.resume)
    for tuning in tunings:
        way.say(f"{tuning.out.name}:")
        _tune(tuning, way, device)
    first = tunings[0]
    jobs = [Job(tuning.out, tuning.config, tuning.prepared.held_out) for tuning in tunings]
    config = first.init.train
    folds = first.prepared.folds
    say_folded(write_folded(way.out, jobs, config, first.prepared.data, folds, leakage, tune), way)


def _policy(tune: TuneConfig, init: Run, features: Path) -> Policy:
    """Return the policy; its backgrounds must not be the clips that are trained on and scored."""
    grid = init.features.clips.grid()
    policy = Policy(tune.augment, grid.sample_rate_hz, grid.clip_samples)
    policy.refuse_own(FeatureStore(features).recordings)
    return policy


def _prepared(features: Path, init: Run, out: Path, recipe: NetworkRecipe, device: torch.device) -> Tuning:
    if init.tune is not None:
        raise ValueError(f"{init.path} is tuned already; name the head's run that it came from.")
    store = FeatureStore(features, str(init.facts["stage"]))
    check_same_features(init, store)
    data = waveform_data(store, init.taxonomy, init.train.labels, device)
    assert recipe.tune is not None
    sampler = replace(init.train.sampler, views=0)  # of maps; waveforms are augmented as they are drawn
    config = replace(init.train, sampler=sampler, fit=recipe.tune.finetune)
    if config.fit.patience and not init.train.fit.patience:
        raise ValueError(
            f"finetune.patience watches a fold that training has not seen, and {init.path} was trained on "
            "all but the held-out one: fit the head with fit.patience too, or leave finetune.patience at 0."
        )
    prepared = prepare(data, folds_of_run(init, store), config, init.facts["held_out"])
    return Tuning(init, config, recipe, prepared, out)


def _tune(tuning: Tuning, way: Way, device: torch.device) -> None:
    prepared, config = tuning.prepared, tuning.config
    steps = steps_per_epoch(prepared, config) * config.fit.epochs
    way.say(
        f"{len(prepared.training_rows)} clips to train on, {len(prepared.validation_rows)} held out; "
        f"{config.fit.epochs} epochs, the last {config.fit.unfreeze_stages} stages of "  # type: ignore[attr-defined]
        f"{tuning.init.features.backbone.name} on {device.type}"
    )
    is_finished = refuse_full(tuning.out, resume=way.resume) and read_facts(tuning.out).get("finished")
    remember = {}
    if len(prepared.validation_rows) and not is_finished:
        start = _score_of_start(tuning, device)
        remember = {"start": {name: value for name, value in start.items() if value == value}}
        way.say(f"epoch   0  macro ROC-AUC {start['macro_roc_auc']:.4f}  top-1 {start['top1']:.4f}")
    with tqdm(total=steps, unit="step", desc="tuning", leave=False) as bar:
        try:
            fit(
                prepared, config, tuning.out, device, recipe=tuning.recipe, remember=remember,
                resume=way.resume, say=bar.write, step_done=bar.update,
            )  # fmt: skip
        except torch.OutOfMemoryError as error:
            raise ValueError(
                "the GPU's memory is too small for a batch: lower finetune.batch_clips and raise "
                "finetune.accumulate by as much, or set finetune.checkpointing = true."
            ) from error
    tuning.recipe.release()
    leakage = tuning.init.path / "leakage.json"  # the same sides, and the head's run looked for duplicates
    if leakage.is_file():
        write_json(tuning.out / "leakage.json", json.loads(leakage.read_text(encoding="utf-8")))


def _score_of_start(tuning: Tuning, device: torch.device) -> dict[str, float]:
    """Score the untrained network: what the head's run scored, but for rounding."""
    model = tuning.recipe.model(tuning.prepared, tuning.config, device)
    assert isinstance(model, Network)
    rows = tuning.prepared.validation_rows
    table = score_recordings(model, tuning.prepared.data, rows, Precision(device))[1].table(interval=False)
    return {name: float(table[name]) for name in ("macro_roc_auc", "cmap", "top1")}
