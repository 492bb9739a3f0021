"""Training samples of each stage are distributed as the reference's, on BCCD.

The golden file holds quantiles over 800 images per stage. The test of one quantile: let G be the
golden value of quantile p and F(G) the share of our boxes (or images) at or below it. F(G) is a
ratio of sums over batches, for objects of an image share its geometry and mixup ties images of a
batch; its variance is taken over batches (delta method of a ratio), and the golden quantile adds
the same variance scaled by the two numbers of images. So

    z = (F(G) - p) / sqrt(var(F) (1 + n / 800))

is about standard normal if both come from one distribution. Where values repeat (BCCD's boxes are
whole pixels), any p between the shares below and at or below G agrees. Means are compared alike.
About 150 z values in four stages: a bound of 4.5 keeps the chance of any false alarm under 0.2 %.
"""

import json

from deim_mmdet.utils import Stage

import numpy as np
import pytest
import torch
from mmdet.registry import DATASETS, MODELS
from mmengine.config import Config
from mmengine.dataset import pseudo_collate

BOUND = 4.5
BATCH = 4
GOLDEN_STAGES = {
    Stage.WARM_UP: 'warm-up',
    Stage.DENSE: 'dense',
    Stage.FLAT: 'flat',
    Stage.NO_AUG: 'no-aug',
}


@pytest.fixture(scope='module')
def config(repo_root):
    return Config.fromfile(repo_root / 'configs/deim_dfine_l.py')


@pytest.fixture(scope='module')
def dataset(shared_dir, config):
    root = shared_dir / 'data/bccd'
    if not root.is_dir():
        pytest.skip(f'{root} is absent')
    dataset = config.train_dataloader.dataset
    dataset.dataset.update(
        data_root=str(root), ann_file='annotations/train.json', data_prefix=dict(img='images/')
    )
    return DATASETS.build(dataset)


@pytest.fixture(scope='module')
def preprocessor(config):
    return MODELS.build(config.model.data_preprocessor)


@pytest.fixture(scope='module')
def golden(repo_root):
    return json.loads((repo_root / 'tests/data/golden/data_bccd_deim_dfine_l.json').read_text())


class Samples:
    """Boxes and pixel means of ``images`` samples of a stage, by batch."""

    def __init__(self, dataset, preprocessor, stage, images, seed=0):
        np.random.seed(seed)
        dataset.pipeline[0].set_stage(stage)
        for augment in preprocessor.batch_augments:
            augment.set_stage(stage)
        order = np.concatenate(
            [np.random.permutation(len(dataset)) for _ in range(images // len(dataset) + 1)]
        )
        self.images = images
        self.boxes, self.counts, self.pixel_means, self.sizes = [], [], [], set()
        for batch in order[:images].reshape(-1, BATCH):
            data = preprocessor(pseudo_collate([dataset[int(i)] for i in batch]), training=True)
            height, width = data['inputs'].shape[-2:]
            assert data['inputs'].min() >= 0
            assert data['inputs'].max() <= 1
            scale = torch.tensor([width, height] * 2)
            boxes = [s.gt_instances.bboxes / scale for s in data['data_samples']]
            self.boxes.append(torch.cat(boxes).numpy())
            self.counts.append(np.array([len(of_image) for of_image in boxes], dtype=float))
            self.pixel_means.append(np.array([data['inputs'].mean().item()]))
            self.sizes.add(height)

    def values(self):
        """Name of each golden quantity -> list of our values of each batch."""
        centres = [(b[:, :2] + b[:, 2:]) / 2 for b in self.boxes]
        sides = [b[:, 2:] - b[:, :2] for b in self.boxes]
        return {
            'boxes_per_image': self.counts,
            'width': [side[:, 0] for side in sides],
            'height': [side[:, 1] for side in sides],
            'cx': [centre[:, 0] for centre in centres],
            'cy': [centre[:, 1] for centre in centres],
        }

    def z_values(self, golden):
        """Every comparison with the golden figures of a stage: name -> z."""
        z = {
            'pixel_mean': self._z(self.pixel_means, golden['pixel_mean']),
            'boxes_per_image_mean': self._z(self.counts, golden['boxes_per_image_mean']),
        }
        for name, batches in self.values().items():
            for p, g in zip(golden['q'], golden[f'{name}_q'], strict=True):
                # Boxes went through float32, golden quantiles are interpolated.
                at_or_below = [values <= g + 1e-4 for values in batches]
                below = [values < g - 1e-4 for values in batches]
                agreed = np.clip(p, _ratio(below), _ratio(at_or_below))
                z[f'{name} at {p}'] = (agreed - p) / max(
                    self._error(at_or_below), self._error(below), self._least_error(p, batches)
                )
        return z

    def _z(self, batches, expected):
        return (_ratio(batches) - expected) / self._error(batches)

    def _error(self, batches):
        """Standard error of the difference of our ratio and the golden one."""
        sums = np.array([values.sum() for values in batches], dtype=float)
        sizes = np.array([len(values) for values in batches], dtype=float)
        residual = sums - _ratio(batches) * sizes
        return np.sqrt((residual**2).sum() / sizes.sum() ** 2 * (1 + self.images / 800))

    def _least_error(self, p, batches):
        """Error of a share of independent values: a bound where none lies beyond G."""
        return np.sqrt(p * (1 - p) / sum(map(len, batches)) * (1 + self.images / 800))


def _ratio(batches):
    return np.concatenate(batches).mean()


@pytest.mark.parametrize(
    ('stage', 'images'),
    [(Stage.WARM_UP, 400), (Stage.DENSE, 500), (Stage.FLAT, 500), (Stage.NO_AUG, 400)],
)
def test_stage_agrees_with_the_reference(dataset, preprocessor, golden, stage, images):
    samples = Samples(dataset, preprocessor, stage, images)
    expected = golden[GOLDEN_STAGES[stage]]
    assert samples.sizes == set(expected['sizes'])
    z = samples.z_values(expected)
    off = {name: round(float(value), 1) for name, value in z.items() if abs(value) > BOUND}
    assert not off, f'z beyond {BOUND}: {off}'


def test_the_comparison_notices_other_settings(dataset, preprocessor, golden):
    """Without mixup, or with mosaics at a quarter, the dense stage does not pass."""
    mixup = preprocessor.batch_augments[0]
    for holder, option, value in ((mixup, 'prob', 0), (dataset.pipeline[0], 'mosaic_prob', 0.25)):
        recipe = getattr(holder, option)
        setattr(holder, option, value)
        try:
            z = Samples(dataset, preprocessor, Stage.DENSE, 300).z_values(golden['dense'])
        finally:
            setattr(holder, option, recipe)
        assert max(map(abs, z.values())) > BOUND
