"""The reference's own D-FINE gives what ours gives: outputs, loss terms and gradients."""

import functools

from deim_mmdet.checkpoints.reference import convert_reference_state_dict

import pytest
import torch
from golden import CONFIGS, build_model, filled_state_dict, image
from measuring.reference_models import build_reference
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import bbox_cxcywh_to_xyxy
from mmengine.config import Config, ConfigDict
from mmengine.structures import InstanceData
from typed_configs import SPELLINGS, spelled

pytestmark = pytest.mark.slow

pytest.importorskip('dfine', reason='pydfine is not installed')

# Of the smallest of a side for which N has a token for each of its 300 queries.
SIDE = 256


def both(name):
    """Our model and the reference's with its criterion, of the same weights, float64.

    Without denoising, whose noise is random.
    """
    cfg = Config.fromfile(CONFIGS / f'{name}.py').model
    reference, criterion = build_reference(cfg, SIDE)
    reference.double()
    own = reference.state_dict()
    state = filled_state_dict(
        {key: value.shape for key, value in own.items()}, cfg.bbox_head.decoder.reg_scale
    )
    # What follows from the config and the size; the scales are 1 / points, but of single precision.
    state |= {key: own[key] for key in ('decoder.anchors', 'decoder.valid_mask')}
    scales = [key for key in own if key.endswith('num_points_scale')]
    state |= {key: 1 / (1 / own[key]).round() for key in scales}
    reference.load_state_dict(state, strict=True)
    reference.decoder.num_denoising = 0
    reference.decoder._generate_anchors = functools.partial(
        reference.decoder._generate_anchors, dtype=torch.float64
    )
    ours = build_model(name).double()
    ours.load_state_dict(convert_reference_state_dict(state), strict=True)
    ours.bbox_head.denoising = None
    return ours, reference, criterion


@pytest.mark.parametrize('name', ['dfine_n', 'dfine_s', 'dfine_m', 'dfine_l', 'dfine_x'])
def test_outputs_in_evaluation(name):
    ours, reference, _ = both(name)
    images = torch.from_numpy(image('reference', (2, 3, SIDE, SIDE)))
    with torch.no_grad():
        expected = reference.eval()(images)
        scores, boxes = ours.eval().bbox_head(ours.extract_feat(images))
    torch.testing.assert_close(scores, expected['pred_logits'], atol=1e-5, rtol=0)
    torch.testing.assert_close(boxes, expected['pred_boxes'], atol=1e-5, rtol=0)


def by_kind(losses, kind_of):
    sums = {}
    for name, value in losses.items():
        kind = kind_of(name)
        sums[kind] = sums.get(kind, 0) + value
    return sums


@pytest.mark.parametrize('counts', [(5, 3), (12, 0)], ids=['objects', 'one image without objects'])
@pytest.mark.parametrize('name', ['dfine_n', 'dfine_l'])
def test_losses_and_gradients_in_training(name, counts, monkeypatch):
    # The reference in double precision throughout, its positions and targets of distributions
    # included: rounding decides on queries, matches and which units are active.
    monkeypatch.setattr(torch, 'float32', torch.float64)
    monkeypatch.setattr(torch.Tensor, 'float', torch.Tensor.double)
    # Its union set leaves the order of equally frequent pairs to the sorting.
    monkeypatch.setattr(torch, 'argsort', functools.partial(torch.argsort, stable=True))
    ours, reference, criterion = both(name)
    images = torch.from_numpy(image('reference', (2, 3, SIDE, SIDE)))
    generator = torch.Generator().manual_seed(0)
    samples, targets = [], []
    for count in counts:
        boxes = torch.rand(count, 4, generator=generator, dtype=torch.float64) * 0.3 + 0.05
        boxes[:, :2] += 0.3
        labels = torch.randint(80, (count,), generator=generator)
        targets.append(dict(labels=labels, boxes=boxes))
        sample = DetDataSample(metainfo=dict(img_shape=(SIDE, SIDE)))
        corners = bbox_cxcywh_to_xyxy(boxes) * SIDE
        sample.gt_instances = InstanceData(bboxes=corners, labels=labels)
        samples.append(sample)
    expected = criterion(reference.train()(images, targets), targets)
    losses = ours.train().loss(images, samples)
    kinds = dict(loss_cls='vfl', loss_bbox='bbox', loss_iou='giou', loss_fgl='fgl', loss_ddf='ddf')
    ours_by_kind = by_kind(losses, lambda key: kinds['_'.join(key.split('.')[-1].split('_')[:2])])
    theirs_by_kind = by_kind(expected, lambda key: key.split('_')[1])
    assert ours_by_kind.keys() == theirs_by_kind.keys()
    for kind, value in theirs_by_kind.items():
        torch.testing.assert_close(ours_by_kind[kind], value, rtol=1e-5, atol=0)

    sum(expected.values()).backward()
    sum(losses.values()).backward()
    gradients = {name: p.grad for name, p in reference.named_parameters() if p.grad is not None}
    missing = {
        name: torch.zeros_like(value)
        for name, value in reference.state_dict().items()
        if name not in gradients
    }
    theirs = convert_reference_state_dict(gradients | missing)
    largest = max(gradient.norm() for gradient in gradients.values())
    for name, parameter in ours.named_parameters():
        gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        difference = (gradient - theirs[name]).norm()
        assert difference <= 1e-5 * theirs[name].norm() + 1e-9 * largest, name


def test_what_the_reference_does_not_have():
    cfg = Config.fromfile(CONFIGS / 'rtdetrv2_r18.py').model
    for spelling in SPELLINGS:
        with pytest.raises(ValueError, match=r'no model with a RTDETRHead$'):
            build_reference(ConfigDict(spelled(cfg, spelling)), SIDE)


@pytest.mark.parametrize('spelling', SPELLINGS)
def test_types_may_be_classes_and_paths(spelling):
    cfg = Config.fromfile(CONFIGS / 'dfine_n.py').model
    named, _ = build_reference(cfg, SIDE)
    reference, _ = build_reference(ConfigDict(spelled(cfg, spelling)), SIDE)
    assert {key: value.shape for key, value in reference.state_dict().items()} == {
        key: value.shape for key, value in named.state_dict().items()
    }


def test_without_pydfine(monkeypatch):
    monkeypatch.setattr('deim_mmdet.deployment.extras.find_spec', lambda name: None)
    with pytest.raises(ImportError, match=r'pip install .pydfine'):
        build_reference(Config.fromfile(CONFIGS / 'dfine_n.py').model, SIDE)
