"""Losses and gradients under autocast are no less exact than those of other implementations.

All compute with the same weights, images and objects, and without denoising, whose noise is random.
An error is the distance to the same implementation's result in double precision, relative to that.
Rounding decides between queries and between matches that are almost equally good. To compare like
with like, selection and matching are those of double precision. Where a GPU computes a product of
half precision, so do the tests; see ``half_products``.
"""

import functools
import math
import tempfile
from collections import defaultdict
from contextlib import nullcontext
from pathlib import Path

from deim_mmdet.checkpoints.convert import find_weights, to_our_names
from deim_mmdet.checkpoints.files import read_checkpoint
from deim_mmdet.checkpoints.reference import convert_reference_state_dict
from deim_mmdet.models.task_modules import hungarian_matcher

import pytest
import scipy.optimize
import torch
from golden import CONFIGS, image
from half_products import HALVES, HalfProducts
from measuring.reference_models import build_reference
from measuring.transformers_models import build_counterpart
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import bbox_cxcywh_to_xyxy
from mmengine.config import Config
from mmengine.structures import InstanceData
from torch.overrides import TorchFunctionMode

pytestmark = pytest.mark.slow

SIDE = 64
QUERIES = 15
# Images of 64 pixels have too few tokens for 300 queries. Gradients of float16 need a scale.
SCALES = {torch.bfloat16: 1.0, torch.float16: 64.0, torch.float64: 1.0}
PARTS = dict(encoder='neck', decoder='head', bbox_head='head')
KINDS = dict(cls='vfl', iou='giou')


class Choices(TorchFunctionMode):
    """Keeps which queries are selected and matched; with ``made``, makes the same choices."""

    def __init__(self, monkeypatch, made=None):
        super().__init__()
        self.made, self.repeated = [], None if made is None else iter(made)
        solve = scipy.optimize.linear_sum_assignment

        def matched(costs):
            return self.choose(lambda: solve(costs))

        monkeypatch.setattr(scipy.optimize, 'linear_sum_assignment', matched)
        for module in (hungarian_matcher, _transformers_losses()):
            if module is not None:
                monkeypatch.setattr(module, 'linear_sum_assignment', matched)

    def choose(self, make):
        self.made.append(make() if self.repeated is None else next(self.repeated))
        return self.made[-1]

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in (torch.topk, torch.Tensor.topk) and args[0].dim() == 2:
            index = self.choose(lambda: func(*args, **kwargs).indices)
            return torch.return_types.topk((args[0].gather(1, index), index))
        return func(*args, **kwargs)


def _transformers_losses():
    try:
        from transformers.loss import loss_for_object_detection, loss_rt_detr  # noqa: F401
    except ImportError:
        return None
    return loss_for_object_detection


def config(name):
    cfg = Config.fromfile(CONFIGS / f'{name}.py').model
    cfg.backbone.init_cfg = None
    cfg.bbox_head.denoising = None
    return cfg


def objects(seed, dtype):
    generator = torch.Generator().manual_seed(seed)
    targets = []
    for count in (5, 3):
        boxes = torch.rand(count, 4, generator=generator, dtype=torch.float64) * 0.3 + 0.05
        boxes[:, :2] += 0.3
        labels = torch.randint(80, (count,), generator=generator)
        targets.append(dict(labels=labels, class_labels=labels, boxes=boxes.to(dtype)))
    return targets


class Ours:
    def __init__(self, cfg):
        self.model = MODELS.build(cfg)
        self.model.bbox_head.query_selection.num_queries = QUERIES

    def losses(self, images, targets, autocast):
        samples = []
        for target in targets:
            sample = DetDataSample(metainfo=dict(img_shape=(SIDE, SIDE)))
            corners = bbox_cxcywh_to_xyxy(target['boxes']) * SIDE
            sample.gt_instances = InstanceData(bboxes=corners, labels=target['labels'])
            samples.append(sample)
        with autocast:
            return self.model.loss(images, samples)


class Reference:
    def __init__(self, cfg):
        self.model, self.criterion = build_reference(cfg, SIDE)
        decoder = self.model.decoder
        decoder.num_denoising, decoder.num_queries = 0, QUERIES
        self.anchors = decoder._generate_anchors

    def losses(self, images, targets, autocast):
        self.model.decoder._generate_anchors = functools.partial(self.anchors, dtype=images.dtype)
        with autocast:
            outputs = self.model(images, targets)
        # As the authors do.
        return self.criterion(outputs, targets)

    def our_state(self):
        return convert_reference_state_dict(self.model.state_dict())


class Transformers:
    def __init__(self, cfg):
        self.model = build_counterpart(cfg)
        self.model.config.num_denoising, self.model.config.num_queries = 0, QUERIES

    def losses(self, images, targets, autocast):
        with autocast:
            losses = self.model(pixel_values=images, labels=targets).loss_dict
        return losses

    def our_state(self):
        # Files have other names than the model.
        with tempfile.TemporaryDirectory() as folder:
            self.model.save_pretrained(folder)
            file = read_checkpoint(Path(folder) / 'model.safetensors')
        return to_our_names(find_weights(file))


def results(side, images, seed, half, choices, monkeypatch):
    """Loss terms, gradients by part of the model, and the choices."""
    autocast = nullcontext() if half is None else torch.autocast('cpu', half)
    dtype = images.dtype
    model = side.model.to(dtype).train()
    if side.norms_fixed:
        for norm in batch_norms(model):
            norm.eval()
    model.zero_grad()
    with monkeypatch.context() as patch:
        # The reference's union set leaves the order of equally frequent pairs to the sorting.
        patch.setattr(torch, 'argsort', functools.partial(torch.argsort, stable=True))
        if half is None:
            # The reference has some numbers in single precision.
            patch.setattr(torch, 'float32', torch.float64)
            patch.setattr(torch.Tensor, 'float', torch.Tensor.double)
        with Choices(patch, choices) as made, HalfProducts():
            losses = side.losses(images, objects(seed, dtype), autocast)
            scale = SCALES[half or torch.float64]
            (sum(losses.values()) * scale).backward()
    gradients = defaultdict(list)
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            names = name.split('.')
            part = next(part for part in names if part != 'model')
            gradients[PARTS.get(part, part)].append(parameter.grad.flatten().double() / scale)
    terms = {name: value.item() for name, value in losses.items()}
    return terms, {part: torch.cat(each) for part, each in gradients.items()}, made.made


def kind(term):
    name = term.split('.')[-1].split('_')[1]
    return f'loss_{KINDS.get(name, name)}'


def errors(side, seed, monkeypatch):
    """Relative errors by type, kind of loss term or part of the model."""
    images = torch.from_numpy(image(f'rounding {seed}', (2, 3, SIDE, SIDE)))
    terms, gradients, choices = results(side, images, seed, None, None, monkeypatch)
    found = defaultdict(list)
    for half in HALVES:
        rounded = results(side, images.float(), seed, half, choices, monkeypatch)
        for name, value in terms.items():
            # The last layer has no distillation.
            if abs(value) > 1e-9:
                found[half, kind(name)].append(abs(rounded[0][name] / value - 1))
        for part, gradient in gradients.items():
            distance = (rounded[1][part] - gradient).norm() / gradient.norm()
            found[half, part].append(distance.item())
    return found, sum(terms.values())


def batch_norms(model):
    return [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]


def randomise(side, seed):
    """Change all weights, and let norms of fixed statistics normalise, as trained models do."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in side.model.parameters():
            if parameter.requires_grad:
                # In proportion to what a weight of its layer has at first: larger networks would
                # otherwise blow rounding errors up until they hide the result.
                inputs = parameter[0].numel() if parameter.dim() > 1 else 100
                parameter.add_(torch.randn_like(parameter), alpha=0.2 * inputs**-0.5)

    def normalise(norm, args):
        norm.running_mean.copy_(args[0].mean((0, 2, 3)))
        norm.running_var.copy_(args[0].var((0, 2, 3)))

    frozen = [m for m in side.model.modules() if 'FrozenBatchNorm' in type(m).__name__]
    frozen += batch_norms(side.model)
    hooks = [norm.register_forward_pre_hook(normalise) for norm in frozen]
    images = torch.from_numpy(image(f'rounding {seed}', (2, 3, SIDE, SIDE))).float()
    with torch.no_grad():
        side.losses(images, objects(seed, torch.float32), nullcontext())
    for hook in hooks:
        hook.remove()


def root_mean_square(values):
    return math.sqrt(sum(value**2 for value in values) / len(values))


# With the statistics of two small images, each norm enlarges rounding errors. N is shallow enough.
@pytest.mark.parametrize(
    ('name', 'package', 'build', 'norms_fixed'),
    [
        ('dfine_n', 'dfine', Reference, False),
        ('rtdetrv2_r18', 'transformers', Transformers, True),
    ],
)
def test_errors_of_half_precision(name, package, build, norms_fixed, monkeypatch):
    """Of all loss terms and gradients, at most 1.1 times those of the other implementation."""
    pytest.importorskip(package)
    cfg = config(name)
    if build is Transformers:
        # transformers freezes the norms of the backbone, and nothing else of it.
        cfg.backbone.update(frozen_stem=False, norm_frozen=True)
    theirs = build(cfg)
    theirs.model.train()
    ours = Ours(cfg)
    ours.norms_fixed = theirs.norms_fixed = norms_fixed
    found = [defaultdict(list), defaultdict(list)]
    for seed in range(5):
        randomise(theirs, seed)
        state = theirs.our_state()
        state.pop('bbox_head.denoising.embedding.weight', None)
        ours.model.load_state_dict(state)
        totals = []
        for index, side in enumerate((ours, theirs)):
            of_seed, total = errors(side, seed, monkeypatch)
            totals.append(total)
            for key, values in of_seed.items():
                found[index][key] += values
            side.model.float()
        assert totals[0] == pytest.approx(totals[1], rel=1e-5)
    table = {
        f'{key[0]} {key[1]}': (root_mean_square(found[0][key]), root_mean_square(found[1][key]))
        for key in found[0]
    }
    for key, (own, other) in table.items():
        print(f'{name} {key}: {own:.5f} {other:.5f} {own / other:.3f}')
    assert table
    assert {key: pair for key, pair in table.items() if not pair[0] <= 1.1 * pair[1]} == {}
