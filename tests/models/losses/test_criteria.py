"""The stacked criteria against the same losses written down step by step."""

from deim_mmdet.models.layers.distribution import (
    bin_probabilities,
    distances_to_boxes,
    expected_distances,
    weighting_function,
)
from deim_mmdet.models.layers.predictions import Predictions
from deim_mmdet.models.losses import DFINECriterion, SetCriterion
from deim_mmdet.models.task_modules import Targets

import pytest
import torch
from plain_criterion import PlainCriterion

REG_MAX, UP, REG_SCALE = 32, torch.tensor([0.5]).double(), torch.tensor([4.0]).double()
BIN_DISTANCES = weighting_function(REG_MAX, UP, REG_SCALE)
LOSSES = dict(
    mal=dict(type='MatchabilityAwareLoss', gamma=1.5),
    vfl=dict(type='VarifocalQualityLoss', alpha=0.75, gamma=2.0),
)


def criterion_of(kind, loss):
    return kind(terms=dict(loss_cls=dict(loss=LOSSES[loss])))


def random_boxes(*shape: int) -> torch.Tensor:
    centre = torch.rand(*shape, 2, dtype=torch.float64) * 0.8 + 0.1
    return torch.cat([centre, torch.rand(*shape, 2, dtype=torch.float64) * 0.3 + 0.02], -1)


def random_predictions(dfine: bool, layers: int, batch: int, queries: int, classes: int):
    """Predictions and the leaves that they depend on."""
    scores = torch.randn(layers, batch, queries, classes, dtype=torch.float64)
    boxes = random_boxes(layers, batch, queries)
    if not dfine:
        leaves = [scores.requires_grad_(), boxes.requires_grad_()]
        return Predictions(*leaves), leaves
    distributions = torch.randn(layers, batch, queries, 4 * (REG_MAX + 1), dtype=torch.float64)
    references = random_boxes(1, batch, queries)
    leaves = [scores, distributions, scores[:1] + 1, random_boxes(1, batch, queries)]
    scores, distributions, initial_scores, initial_boxes = (x.requires_grad_() for x in leaves)
    distances = expected_distances(bin_probabilities(distributions), BIN_DISTANCES)
    boxes = distances_to_boxes(references, distances, REG_SCALE)
    leaves = [scores, distributions, initial_scores, initial_boxes]
    fields = scores, boxes, distributions, references, initial_scores, initial_boxes
    return Predictions(*fields, bin_distances=BIN_DISTANCES, reg_scale=REG_SCALE), leaves


def with_negative_sizes(boxes: torch.Tensor) -> torch.Tensor:
    """Every third box turned inside out along one side, every fourth along both."""
    signs = torch.ones_like(boxes)
    signs[..., ::3, 2] = -1
    signs[..., ::4, 2:] = -1
    return boxes * signs


@pytest.mark.parametrize(('seed', 'layers'), [(0, 3), (1, 3), (2, 3), (3, 1)])
@pytest.mark.parametrize('loss', ['mal', 'vfl'])
@pytest.mark.parametrize('dfine', [True, False], ids=['dfine', 'rtdetr'])
@pytest.mark.parametrize(
    ('counts', 'groups', 'filled'),
    [((4, 0, 7), 3, 0), ((1,), 2, 3), ((0, 0), 0, 0), ((0, 0), 1, 4), ((12, 3), 1, 0)],
)
def test_values_and_gradients(dfine, loss, counts, groups, filled, seed, layers):
    """Also of images without objects, and with more objects than queries (12 for 10).

    After the denoising queries come some that only fill up.
    """
    torch.manual_seed(seed)
    batch, queries, classes = len(counts), 10, 5
    targets = [dict(labels=torch.randint(classes, (n,)), boxes=random_boxes(n)) for n in counts]
    noised = groups * 2 * max(counts) + filled
    predictions, leaves = random_predictions(dfine, layers, batch, noised + queries, classes)
    encoder = (
        torch.randn(batch, queries, classes, dtype=torch.float64).requires_grad_(),
        random_boxes(batch, queries).requires_grad_(),
    )
    leaves += encoder
    criterion = criterion_of(DFINECriterion if dfine else SetCriterion, loss)
    stacked = Targets.from_lists([t['labels'] for t in targets], [t['boxes'] for t in targets])
    ours = criterion(predictions, encoder, stacked, noised, groups)
    plain = PlainCriterion(loss, (BIN_DISTANCES, float(REG_SCALE)) if dfine else None)(
        predictions, encoder, targets, noised, groups
    )
    assert ours.keys() == plain.keys()
    for name, value in plain.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-9, atol=1e-12, msg=name)
    expected = torch.autograd.grad(
        sum(plain.values()), leaves, retain_graph=True, allow_unused=True
    )
    actual = torch.autograd.grad(sum(ours.values()), leaves, allow_unused=True)
    for a, e in zip(actual, expected, strict=True):
        e = torch.zeros_like(a) if e is None else e
        torch.testing.assert_close(a, e, rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize('loss', ['mal', 'vfl'])
def test_boxes_turned_inside_out_count_as_empty(loss):
    """Their GIoU isn't above 0, doesn't pull at their sizes, and all losses are the plain ones."""
    torch.manual_seed(0)
    scores = torch.randn(1, 2, 6, 5, dtype=torch.float64)
    boxes = with_negative_sizes(random_boxes(1, 2, 6)).requires_grad_()
    targets = [dict(labels=torch.randint(5, (6,)), boxes=random_boxes(6)) for _ in range(2)]
    case = Predictions(scores, boxes), (scores[0], boxes[0])
    stacked = Targets.from_lists([t['labels'] for t in targets], [t['boxes'] for t in targets])
    ours = criterion_of(SetCriterion, loss)(*case, stacked)
    for name, value in PlainCriterion(loss)(*case, targets).items():
        torch.testing.assert_close(ours[name], value, rtol=1e-9, atol=1e-12, msg=name)
    (gradient,) = torch.autograd.grad(ours['loss_iou'], boxes)
    empty = boxes.detach()[..., 2:] < 0
    assert empty.any()
    assert (gradient[..., 2:][empty] == 0).all()
    assert (gradient[..., 2:][~empty.any(-1)] != 0).all()


def test_loss_of_a_box_turned_inside_out():
    """By hand: inside the object the hull is the object, so that GIoU is 0 and the loss 2."""
    boxes = torch.tensor([[[[0.5, 0.5, -0.3, -0.2]]]])
    targets = Targets.from_lists([torch.tensor([0])], [torch.tensor([[0.5, 0.5, 0.4, 0.4]])])
    criterion = SetCriterion()
    predictions = Predictions(torch.zeros(1, 1, 1, 2), boxes)
    losses = criterion(predictions, (predictions.scores[0], boxes[0]), targets)
    assert float(losses['loss_iou']) == pytest.approx(2)


class WholeSum(torch.nn.Module):
    """A loss whose values are as many as ``count``, whatever it is asked for."""

    def __init__(self, count):
        super().__init__()
        self.count = count

    def forward(self, pred, *args, **kwargs):
        return pred.sum() * torch.ones(self.count)


@pytest.mark.parametrize('count', [(), 1, 3, 4])
def test_a_term_with_an_unexpected_number_of_values_is_refused(count):
    """For three layers the distillation has two."""
    matching, _ = random_predictions(True, 3, 1, 10, 5)
    labels, boxes = torch.randint(5, (4,)), random_boxes(4)
    criterion = DFINECriterion()
    criterion.terms['loss_ddf'].loss = WholeSum(count)
    encoder = torch.randn(1, 10, 5, dtype=torch.float64), random_boxes(1, 10)
    with pytest.raises(ValueError, match=r"loss_ddf needs 2 values, .*\['d0\.', 'd1\.'\], got"):
        criterion(matching, encoder, Targets.from_lists([labels], [boxes]))
