"""The losses of a tiny training, committed: a change that moves them is a change, not a refactoring."""

from functools import partial

import numpy as np
import pytest
import torch

from trainer.config import FitConfig, HeadConfig, LossConfig, MixupConfig
from trainer.heads import Head
from trainer.loop import Precision, Training, make_optimiser, warmup_cosine
from trainer.mixup import Batch, mixup

GOLDEN = {
    "chrononet": [0.0578309, 0.0504284, 0.0510057],
    "attention": [0.0624067, 0.0525736, 0.0556029],
    "linear": [0.0624501, 0.0529489, 0.0559529],
}


def steps(epoch: int) -> list[list[Batch]]:
    rng = np.random.default_rng(epoch)
    made = []
    for _ in range(8):
        targets = rng.random((16, 5)) < 0.25
        maps = rng.standard_normal((16, 12, 3, 10)) + np.pad(targets, ((0, 0), (0, 7)))[:, :, None, None]
        mask = np.arange(10) < rng.integers(3, 11, 16)[:, None]
        parts = (
            maps.astype(np.float32),
            targets.astype(np.float32),
            np.ones((16, 5), np.float32),
            mask,
            np.ones(16, int),
        )
        made.append([Batch(*map(torch.from_numpy, parts))])
    return made


@pytest.mark.parametrize("name", list(GOLDEN))
def test_the_losses_are_those_committed(name: str) -> None:
    torch.manual_seed(0)
    config = FitConfig(learning_rate=0.01)
    head = Head(12, 3, 5, HeadConfig(name=name, filters=8, gru_units=16, dropout=0.0, frequency="mean"))
    optimiser = make_optimiser(head, config)
    rate = partial(warmup_cosine, num_steps=24, warmup=config.warmup)
    training = Training(head, optimiser, rate, Precision(torch.device("cpu")), LossConfig(), clip_norm=1.0)
    found = []
    for epoch in range(3):
        mix = partial(mixup, config=MixupConfig(), rng=np.random.default_rng([epoch, 1]))
        found.append(training.run(steps(epoch), mix, lambda _: None))
    assert found == pytest.approx(GOLDEN[name], rel=1e-4)
