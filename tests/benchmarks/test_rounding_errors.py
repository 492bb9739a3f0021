"""Losses and gradients under autocast are no less exact than those of other implementations."""

import copy
import math
from collections import defaultdict
from statistics import geometric_mean

import pytest
import torch
from golden import CONFIGS, image
from measuring.half_products import HALVES
from measuring.rounding import (
    Ours,
    Reference,
    Transformers,
    compute,
    gradient_errors,
    make_batch,
    randomise,
)
from mmengine.config import Config

pytestmark = pytest.mark.slow

SIDE = 64
KINDS = dict(cls='vfl', iou='giou')


def config(name):
    cfg = Config.fromfile(CONFIGS / f'{name}.py').model
    cfg.backbone.init_cfg = None
    cfg.bbox_head.denoising = None
    return cfg


def batch_of(seed, size):
    return make_batch(torch.from_numpy(image(f'rounding {seed}', (size, 3, SIDE, SIDE))), seed)


def kind(term):
    name = term.split('.')[-1].split('_')[1]
    return f'loss_{KINDS.get(name, name)}'


def errors(side, batch):
    """Relative errors by type, kind of loss term or part of the model."""
    truth = compute(side, batch.to(torch.float64))
    found = defaultdict(list)
    for half in HALVES:
        rounded = compute(side, batch.to(torch.float32), half, truth.choices)
        for name, value in truth.terms.items():
            # The last layer has no distillation.
            if abs(value) > 1e-9:
                found[half, kind(name)].append(abs(rounded.terms[name] / value - 1))
        for part, error in gradient_errors(rounded, truth).items():
            found[half, part].append(error)
    return found, sum(truth.terms.values())


def mean(what, values):
    """Root mean square of the errors of terms, geometric mean of the gradients' over the seeds.

    Some terms are exact by chance. How well conditioned the gradients are depends on the weights,
    by up to a factor of ten: a root mean square is that of one seed or two.
    """
    if what.startswith('loss'):
        return math.sqrt(sum(value**2 for value in values) / len(values))
    return geometric_mean(values)


def bound(half, what, other, one_scale):
    """How large our error may be, see the test."""
    unit_roundoff = torch.finfo(half).eps / 2
    return max(1.1 * other, unit_roundoff if one_scale and what.startswith('loss') else 0)


# With the statistics of two small images, each norm enlarges rounding errors. Of L's gradients
# nothing would be left, and little of N's in bfloat16. Hence norms of one scale.
@pytest.mark.parametrize(
    ('name', 'package', 'norms', 'size'),
    [
        ('dfine_n', 'dfine', 'of the batch', 2),
        ('rtdetrv2_r18', 'transformers', 'fixed', 2),
        ('dfine_n', 'dfine', 'of one scale', 8),
        ('dfine_l', 'dfine', 'of one scale', 8),
    ],
)
def test_errors_of_half_precision(name, package, norms, size):
    """Of all loss terms and gradients, at most 1.1 times those of the other implementation.

    With norms of one scale, most errors of loss terms are less than the type's unit roundoff, which
    is allowed: they have either sign and cancel, and the ratio of what is left is chance.
    """
    pytest.importorskip(package)
    cfg = config(name)
    norms_fixed, one_scale = norms != 'of the batch', norms == 'of one scale'
    torch.manual_seed(0)
    if package == 'transformers':
        # transformers freezes the norms of the backbone, and nothing else of it.
        cfg.backbone.update(frozen_stem=False, norm_frozen=True)
        theirs = Transformers(cfg, norms_fixed)
    else:
        theirs = Reference(cfg, SIDE, norms_fixed)
    theirs.model.train()
    ours = Ours(cfg, norms_fixed)
    initial = copy.deepcopy(theirs.model.state_dict())
    found = [defaultdict(list), defaultdict(list)]
    for seed in range(5):
        batch = batch_of(seed, size)
        theirs.model.load_state_dict(initial)
        randomise(theirs, batch.to(torch.float32), seed, one_scale)
        state = theirs.our_state()
        state.pop('bbox_head.denoising.embedding.weight', None)
        ours.model.load_state_dict(state)
        totals = []
        for index, side in enumerate((ours, theirs)):
            of_seed, total = errors(side, batch)
            totals.append(total)
            for key, values in of_seed.items():
                found[index][key] += values
            side.model.float()
        assert totals[0] == pytest.approx(totals[1], rel=1e-5)
    table = {key: (mean(key[1], found[0][key]), mean(key[1], found[1][key])) for key in found[0]}
    for (half, what), (own, other) in table.items():
        print(f'{name} {half} {what}: {own:.5f} {other:.5f} {own / other:.3f}')
    assert table
    worse = {
        (half, what): (own, other)
        for (half, what), (own, other) in table.items()
        if not own <= bound(half, what, other, one_scale)
    }
    assert worse == {}
