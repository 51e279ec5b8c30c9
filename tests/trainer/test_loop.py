from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from shared.features import FeatureConfig
from shared.taxonomy import Taxonomy
from trainer.config import FitConfig, HeadConfig, LossConfig, MixupConfig, TrainConfig
from trainer.heads import Head
from trainer.loop import (
    AveragedWeights,
    Precision,
    Training,
    make_optimiser,
    recording_scores,
    warmup_cosine,
)
from trainer.mixup import Batch, mixup
from trainer.run import Run, save_progress

CPU = Precision(torch.device("cpu"))


def make_head(dtype: torch.dtype = torch.float32) -> Head:
    torch.manual_seed(0)
    head = Head(6, 2, 4, HeadConfig(name="chrononet", filters=4, gru_units=8, dropout=0.0)).to(dtype)
    return head


def batch(num: int, seed: int = 0) -> Batch:
    rng = np.random.default_rng(seed)
    weights = (rng.random((num, 4)) < 0.8).astype(np.float32)
    return Batch(
        torch.from_numpy(rng.standard_normal((num, 6, 2, 10)).astype(np.float32)),
        torch.from_numpy((rng.random((num, 4)) < 0.3).astype(np.float32)),
        torch.from_numpy(weights),
        torch.ones(num, 10, dtype=torch.bool),
        torch.full((num,), 100),
    )


def unmixed(batch: Batch) -> Batch:
    return batch


def train(
    head: Head, steps: list[list[Batch]], mix: Callable[[Batch], Batch] = unmixed, lr: float = 0.01
) -> float:
    optimiser = make_optimiser(head, FitConfig(learning_rate=lr))
    rate = partial(warmup_cosine, num_steps=len(steps), warmup=0.1)
    training = Training(head, optimiser, rate, CPU, LossConfig(), 1e9)
    return training.run(steps, mix, lambda _: None)


def test_accumulated_small_batches_are_the_large_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    def in_float64(batch: Batch, _: torch.device) -> Batch:
        return Batch(*(part.double() for part in batch[:3]), *batch[3:])

    monkeypatch.setattr("trainer.loop.to_device", in_float64)
    large, small = make_head(torch.float64), make_head(torch.float64)
    whole = [batch(12, seed) for seed in range(4)]
    parts = [[Batch(*(t[i : i + 3] for t in b)) for i in range(0, 12, 3)] for b in whole]
    losses = train(large, [[b] for b in whole]), train(small, parts)
    assert losses[0] == pytest.approx(losses[1], rel=1e-12)
    for one, two in zip(large.parameters(), small.parameters(), strict=True):
        assert torch.allclose(one, two, rtol=1e-9, atol=1e-12)


def test_one_batch_can_be_overfitted() -> None:
    head, one = make_head(), batch(8)
    first = train(head, [[one]])
    last = train(head, [[one]] * 400)
    train(head, [[one]] * 400)
    with torch.inference_mode():
        logits = head.eval()(one.maps, one.mask).clip_wise
    right = (logits > 0) == (one.targets > 0.5)
    assert last < first / 2
    assert right[one.weights > 0].all()


def test_the_same_seed_gives_the_same_bits() -> None:
    states = []
    for _ in range(2):
        head = make_head()
        mix = partial(mixup, config=MixupConfig(), rng=np.random.default_rng(5))
        train(head, [[batch(8, seed)] for seed in range(5)], mix)
        states.append(head.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(*(s.values() for s in states), strict=True))


def test_a_loss_that_is_not_finite_stops_before_the_step_and_says_where() -> None:
    head = make_head()
    before = {name: tensor.clone() for name, tensor in head.state_dict().items()}
    bad = batch(4)
    bad.maps[2, 0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match="step 1: the loss became nan: the maps of clip 2 of the batch"):
        train(head, [[bad]])
    assert all(torch.equal(before[name], tensor) for name, tensor in head.state_dict().items())


def test_vectors_are_not_decayed() -> None:
    groups = make_optimiser(make_head(), FitConfig()).param_groups
    assert [group["weight_decay"] for group in groups] == [FitConfig().weight_decay, 0.0]
    assert all(parameter.ndim <= 1 for parameter in groups[1]["params"])


def test_the_rate_rises_then_falls_to_nothing() -> None:
    rates = [warmup_cosine(step, num_steps=100, warmup=0.1) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == pytest.approx(1.0)
    assert np.argmax(rates) in (9, 10)
    assert rates[-1] < 0.001


def test_a_recordings_score_is_the_mean_of_its_clips_logits() -> None:
    logits = np.array([[1.0, 0.0], [3.0, 2.0], [5.0, 5.0]], np.float32)
    recordings, scores = recording_scores(logits, np.array([7, 7, 2]))
    assert recordings.tolist() == [2, 7]
    assert scores.tolist() == [[5, 5], [2, 1]]


def test_weights_that_are_not_finite_are_never_saved(tmp_path: Path) -> None:
    head = make_head()
    with torch.no_grad():
        next(iter(head.parameters())).fill_(torch.nan)
    run = Run(tmp_path, TrainConfig(), FeatureConfig(), Taxonomy(("a",)), head, {})
    with pytest.raises(ValueError, match=r"not finite: lower learning_rate"):
        save_progress(run, [{"epoch": 2}])
    assert not list(tmp_path.iterdir())


def test_a_gradient_that_is_not_finite_stops_before_the_step_and_names_the_layer() -> None:
    head = make_head()
    before = {name: tensor.clone() for name, tensor in head.state_dict().items()}
    head.block.classify.weight.register_hook(lambda gradient: gradient * torch.inf)
    with pytest.raises(ValueError, match=r"step 1: the gradient of block\.classify\.weight is not finite"):
        train(head, [[batch(4)]])
    assert all(torch.equal(before[name], tensor) for name, tensor in head.state_dict().items())


def test_in_fp16_gradients_that_overflow_at_every_scale_stop_it() -> None:
    head = make_head()
    precision = Precision(torch.device("cpu"))
    precision.scaler = torch.amp.GradScaler("cpu", enabled=True)
    head.block.classify.weight.register_hook(lambda gradient: gradient * torch.inf)  # type: ignore[operator]
    training = Training(head, make_optimiser(head, FitConfig()), lambda _: 1.0, precision, LossConfig(), 1.0)
    before = {name: tensor.clone() for name, tensor in head.state_dict().items()}
    with pytest.raises(ValueError, match="overflow at every scale"):
        training.run([[batch(4)]] * 60, unmixed, lambda _: None)
    assert all(torch.equal(before[name], tensor) for name, tensor in head.state_dict().items())


def test_averaged_weights_are_the_recursion_and_are_those_that_are_scored() -> None:
    head = make_head()
    averaged = AveragedWeights(head, 0.5)
    optimiser = make_optimiser(head, FitConfig(learning_rate=0.01))
    training = Training(head, optimiser, lambda _: 1.0, CPU, LossConfig(), 1e9, averaged)
    name = "block.classify.weight"
    expected = head.state_dict()[name].clone()
    for step in range(4):
        training.run([[batch(8, step)]], unmixed, lambda _: None)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * head.state_dict()[name]
    assert training.scored_model is averaged.model
    assert torch.allclose(training.scored_model.state_dict()[name], expected, atol=1e-6)
    assert not torch.equal(training.scored_model.state_dict()[name], head.state_dict()[name])


def test_a_step_is_clipped_to_the_norm() -> None:
    heads = make_head(), make_head()
    grown = []
    for head, norm in zip(heads, (1e9, 1e-3), strict=True):
        optimiser = torch.optim.SGD(head.parameters(), lr=1.0)
        before = torch.cat([p.detach().flatten() for p in head.parameters()])
        Training(head, optimiser, lambda _: 1.0, CPU, LossConfig(), norm).run(
            [[batch(8)]], unmixed, lambda _: None
        )
        after = torch.cat([p.detach().flatten() for p in head.parameters()])
        grown.append((after - before).norm().item())
    assert grown[0] > 1.1e-3
    assert grown[1] == pytest.approx(1e-3, rel=0.01)
