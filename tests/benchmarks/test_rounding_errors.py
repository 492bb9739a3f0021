"""Losses and gradients under autocast are no less exact than those of other implementations."""

import math
from collections import defaultdict

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


def batch_of(seed):
    return make_batch(torch.from_numpy(image(f'rounding {seed}', (2, 3, SIDE, SIDE))), seed)


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


def root_mean_square(values):
    return math.sqrt(sum(value**2 for value in values) / len(values))


# With the statistics of two small images, each norm enlarges rounding errors. N is shallow enough.
@pytest.mark.parametrize(
    ('name', 'package', 'norms_fixed'),
    [('dfine_n', 'dfine', False), ('rtdetrv2_r18', 'transformers', True)],
)
def test_errors_of_half_precision(name, package, norms_fixed):
    """Of all loss terms and gradients, at most 1.1 times those of the other implementation."""
    pytest.importorskip(package)
    cfg = config(name)
    if package == 'transformers':
        # transformers freezes the norms of the backbone, and nothing else of it.
        cfg.backbone.update(frozen_stem=False, norm_frozen=True)
        theirs = Transformers(cfg, norms_fixed)
    else:
        theirs = Reference(cfg, SIDE, norms_fixed)
    theirs.model.train()
    ours = Ours(cfg, norms_fixed)
    found = [defaultdict(list), defaultdict(list)]
    for seed in range(5):
        batch = batch_of(seed)
        randomise(theirs, batch.to(torch.float32), seed)
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
    table = {
        f'{key[0]} {key[1]}': (root_mean_square(found[0][key]), root_mean_square(found[1][key]))
        for key in found[0]
    }
    for key, (own, other) in table.items():
        print(f'{name} {key}: {own:.5f} {other:.5f} {own / other:.3f}')
    assert table
    assert {key: pair for key, pair in table.items() if not pair[0] <= 1.1 * pair[1]} == {}
