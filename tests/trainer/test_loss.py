import pytest
import torch
import torch.nn.functional as F

from trainer.config import LossConfig
from trainer.heads import HeadOutput
from trainer.loss import detection_loss, focal_loss

CONFIG = LossConfig(alpha=0.3, gamma=2.0)


def test_focal_loss_is_its_formula() -> None:
    z = torch.linspace(-6, 6, 25, dtype=torch.float64)
    for y in (0.0, 0.3, 1.0):
        p = 1 / (1 + torch.exp(-z))
        expected = -y * 0.3 * (1 - p) ** 2 * torch.log(p) - (1 - y) * 0.7 * p**2 * torch.log(1 - p)
        found = focal_loss(z[None], torch.full_like(z, y)[None], alpha=0.3, gamma=2.0)[0]
        assert torch.allclose(found, expected)


def test_negatives_are_weighed_by_one_minus_alpha() -> None:
    z, zeros = torch.zeros(1, 1), torch.zeros(1, 1)
    negative = focal_loss(z, zeros, alpha=0.3, gamma=2.0)
    positive = focal_loss(z, zeros + 1, alpha=0.3, gamma=2.0)
    assert (negative / positive).item() == pytest.approx(0.7 / 0.3)


def test_gamma_0_and_alpha_one_half_is_half_the_cross_entropy() -> None:
    z = torch.randn(4, 5, generator=torch.manual_seed(0))
    y = (torch.rand(4, 5, generator=torch.manual_seed(1)) < 0.3).float()
    expected = F.binary_cross_entropy_with_logits(z, y, reduction="none") / 2
    assert torch.allclose(focal_loss(z, y, alpha=0.5, gamma=0.0), expected)


def test_its_gradient_is_the_derivative() -> None:
    z = torch.linspace(-4, 4, 6, dtype=torch.float64)[None].requires_grad_()
    y = torch.tensor([[0.0, 1.0, 0.5, 0.0, 1.0, 0.2]], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: focal_loss(x, y, alpha=0.25, gamma=2.0), (z,))


def test_extreme_logits_stay_finite() -> None:
    z = torch.tensor([[-1e4, 1e4]], requires_grad=True)
    loss = focal_loss(z, torch.tensor([[1.0, 0.0]]), alpha=0.25, gamma=2.0).sum()
    loss.backward()  # type: ignore[no-untyped-call]
    assert torch.isfinite(loss)
    assert z.grad is not None
    assert torch.isfinite(z.grad).all()


def output(batch: int = 2) -> HeadOutput:
    generator = torch.manual_seed(0)
    return HeadOutput(
        torch.randn(batch, 10, 3, generator=generator, requires_grad=True),
        torch.randn(batch, 3, generator=generator, requires_grad=True),
    )


def test_the_share_of_the_best_frame_is_taken_from_the_clips() -> None:
    found = {}
    for share in (0.0, 0.25, 1.0):
        config = LossConfig(frame_share=share)
        y = torch.tensor([[1.0, 0, 0], [0, 1, 0]])
        found[share] = detection_loss(
            output(), y, torch.ones(2, 3), torch.ones(2, 10, dtype=torch.bool), config
        )
    assert torch.allclose(found[0.25], 0.75 * found[0.0] + 0.25 * found[1.0])
    best = output().frame_wise.amax(dim=1)
    assert torch.allclose(found[1.0], focal_loss(best, y, alpha=0.25, gamma=2.0).sum())


def test_a_masked_label_gets_no_gradient() -> None:
    out, weights = output(), torch.ones(2, 3)
    weights[0, 1] = 0
    mask = torch.ones(2, 10, dtype=torch.bool)
    detection_loss(out, torch.zeros(2, 3), weights, mask, CONFIG).backward()  # type: ignore[no-untyped-call]
    assert out.clip_wise.grad is not None
    assert out.frame_wise.grad is not None
    assert out.clip_wise.grad[0, 1] == 0
    assert not out.frame_wise.grad[0, :, 1].any()
    assert (out.clip_wise.grad != 0).sum() == 5


def test_half_the_loss_is_the_clip_and_half_the_best_frame_that_holds_audio() -> None:
    out, targets, weights = output(), torch.ones(2, 3), torch.ones(2, 3)
    mask = torch.ones(2, 10, dtype=torch.bool)
    mask[:, 5:] = False
    best = out.frame_wise[:, :5].amax(dim=1)
    parts = [focal_loss(z, targets, alpha=0.3, gamma=2.0).sum() for z in (out.clip_wise, best)]
    assert torch.allclose(detection_loss(out, targets, weights, mask, CONFIG), sum(parts) / 2)
