"""The losses against their formulas, one element after another, and inside mmdet's heads."""

import math

from deim_mmdet.models.losses import (
    DecoupledDistillationFocalLoss,
    FineGrainedLocalizationLoss,
    MatchabilityAwareLoss,
    VarifocalQualityLoss,
)

import pytest
import torch
from mmdet.models.losses import DistributionFocalLoss, QualityFocalLoss
from mmdet.registry import MODELS


def case(n=6, classes=3):
    torch.manual_seed(0)
    pred = torch.randn(n, classes, dtype=torch.float64) * 2
    labels = torch.tensor([0, 2, 3, 1, 3, 0])
    quality = torch.tensor([0.9, 0.05, 0.0, 0.0, 0.0, 1.0], dtype=torch.float64)
    return pred, labels, quality


@pytest.mark.parametrize('alpha', [None, 0.6])
def test_mal_formula(alpha):
    pred, labels, quality = case()
    gamma = 1.5
    loss = MatchabilityAwareLoss(gamma=gamma, alpha=alpha)(
        pred, (labels, quality), reduction_override='none'
    )
    for i, row in enumerate(pred.sigmoid().tolist()):
        expected = 0.0
        for c, p in enumerate(row):
            if c == labels[i]:
                q = quality[i].item() ** gamma
                expected -= q * math.log(p) + (1 - q) * math.log(1 - p)
            else:
                expected -= (alpha or 1) * p**gamma * math.log(1 - p)
        assert loss[i].item() == pytest.approx(expected)


def test_vfl_formula():
    pred, labels, quality = case()
    loss = VarifocalQualityLoss()(pred, (labels, quality), reduction_override='none')
    for i, row in enumerate(pred.sigmoid().tolist()):
        expected = 0.0
        for c, p in enumerate(row):
            if c == labels[i]:
                q = quality[i].item()
                expected -= q * (q * math.log(p) + (1 - q) * math.log(1 - p))
            else:
                expected -= 0.75 * p**2 * math.log(1 - p)
        assert loss[i].item() == pytest.approx(expected)


@pytest.mark.parametrize('name', ['MatchabilityAwareLoss', 'VarifocalQualityLoss'])
def test_quality_losses_pass_for_mmdets_quality_focal_loss(name):
    """mmdet's DETR heads hand (labels, IoU) to instances of QualityFocalLoss."""
    loss = MODELS.build(dict(type=name, loss_weight=2.0))
    assert isinstance(loss, QualityFocalLoss)
    pred, labels, quality = case()
    unreduced = loss(pred, (labels, quality), reduction_override='none')
    weight = torch.rand(6, dtype=torch.float64)
    total = loss(pred, (labels, quality), weight=weight, avg_factor=3)
    torch.testing.assert_close(total, (unreduced * weight).sum() / 3)


@pytest.mark.parametrize('kind', [MatchabilityAwareLoss, VarifocalQualityLoss])
def test_probabilities_have_the_loss_and_the_gradient_of_their_logits(kind):
    pred, *target = case()
    of_logits, of_probabilities = (kind(activated=activated) for activated in (False, True))
    values = [pred.clone().requires_grad_() for _ in range(2)]
    losses = of_logits(values[0], target), of_probabilities(values[1].sigmoid(), target)
    for loss in losses:
        loss.backward()
    torch.testing.assert_close(*losses)
    torch.testing.assert_close(values[0].grad, values[1].grad)
    certain = of_probabilities(torch.tensor([[1.0, 0]]).half(), (target[0][1:2] * 0, torch.ones(1)))
    assert certain.isfinite()


def test_mal_pulls_a_confident_low_quality_match_down_more_than_vfl():
    """Fig. 4 of the paper: at IoU 0.05, MAL rises with the score and VFL hardly does."""
    label, quality = torch.tensor([0]), torch.tensor([0.05])
    confident = torch.tensor([[4.0]], requires_grad=True)
    gradients = [
        torch.autograd.grad(loss(confident, (label, quality)), confident)[0].item()
        for loss in (MatchabilityAwareLoss(), VarifocalQualityLoss())
    ]
    assert gradients[0] > 10 * gradients[1] > 0


def test_fgl_formula_and_agreement_with_mmdets_dfl():
    torch.manual_seed(0)
    pred = torch.randn(5, 9, dtype=torch.float64)
    target = torch.tensor([0.0, 3.25, 7.5, 1.0, 6.9], dtype=torch.float64)
    loss = FineGrainedLocalizationLoss(loss_weight=1.0)(pred, target, reduction_override='none')
    log_p = pred.log_softmax(-1)
    for i, position in enumerate(target.tolist()):
        n, w = int(position), position % 1
        expected = -(1 - w) * log_p[i, n] - w * log_p[i, n + 1]
        assert loss[i].item() == pytest.approx(expected.item())
    theirs = DistributionFocalLoss(loss_weight=1.0)(pred, target, reduction_override='none')
    torch.testing.assert_close(loss, theirs)


def test_fgl_target_on_the_last_bin():
    pred = torch.randn(1, 9, dtype=torch.float64)
    loss = FineGrainedLocalizationLoss(loss_weight=1.0)(pred, torch.tensor([8.0]))
    torch.testing.assert_close(loss, -pred.log_softmax(-1)[0, 8])


def test_fgl_of_a_nan_is_nan_alone():
    """The check of the losses can then name it; as an index it would end the process on a GPU."""
    pred = torch.randn(3, 9)
    target = torch.tensor([2.5, float('nan'), 8.0])
    loss = FineGrainedLocalizationLoss(loss_weight=1.0)(pred, target, reduction_override='none')
    assert loss.isnan().tolist() == [False, True, False]


def test_ddf_formula():
    torch.manual_seed(0)
    t, n, bins = 5.0, 6, 4
    pred, teacher = torch.randn(2, n, bins).double(), torch.randn(n, bins).double()
    weight = torch.rand(2, n).double()
    matched = torch.tensor([True, False, False, True, False, False])
    loss = DecoupledDistillationFocalLoss(loss_weight=1.5)(pred, teacher, weight, matched=matched)
    for layer in range(2):
        divergences = []
        for i in range(n):
            p, q = (pred[layer, i] / t).softmax(-1), (teacher[i] / t).softmax(-1)
            kl = sum(b * math.log(b / a) for a, b in zip(p.tolist(), q.tolist(), strict=True))
            divergences.append(kl * t**2 * weight[layer, i].item())
        mean_matched = (divergences[0] + divergences[3]) / 2
        mean_other = sum(divergences[i] for i in (1, 2, 4, 5)) / 4
        a, b = math.sqrt(2), math.sqrt(4)
        expected = 1.5 * (mean_matched * a + mean_other * b) / (a + b)
        assert loss[layer].item() == pytest.approx(expected)


def test_ddf_of_equal_distributions_is_zero_without_gradient():
    pred = torch.randn(3, 5).requires_grad_()
    loss = DecoupledDistillationFocalLoss()(
        pred, pred, torch.ones(3), matched=torch.tensor([True, False, False])
    )
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-5)
    assert pred.grad.abs().max() < 1e-5
