"""The benchmark's plain implementation does the same work, and its command runs."""

import json
import random
import sys

from deim_mmdet.utils import Stage

import data_pipeline
import numpy as np
import pytest
import torch

pytestmark = pytest.mark.slow


@pytest.fixture(scope='module')
def pipelines(tmp_path_factory):
    """Our pipeline and the plain one on made data."""
    folder = tmp_path_factory.mktemp('made')
    data_pipeline.make_dataset(folder, images=24)
    config = data_pipeline.Config.fromfile(data_pipeline.CONFIG)
    config.train_dataloader.dataset.dataset.update(
        data_root='', ann_file=str(folder / 'train.json'), data_prefix=dict(img=str(folder))
    )
    ours = data_pipeline.OurPipeline(config)
    return ours, ours.step_by_step('pil')


def describe(images, boxes):
    """Per image: mean pixel, number of boxes, mean width, height and centre in shares."""
    rows = []
    for image, of_image in zip(images, boxes, strict=True):
        shares = of_image / torch.tensor([image.shape[2], image.shape[1]] * 2)
        sides, centres = shares[:, 2:] - shares[:, :2], (shares[:, :2] + shares[:, 2:]) / 2
        means = torch.cat([sides, centres], dim=1).mean(dim=0) if len(shares) else [np.nan] * 4
        rows.append([image.mean().item(), len(of_image), *map(float, means)])
    return np.array(rows)


@pytest.mark.parametrize('stage', list(Stage))
def test_both_make_the_same_kind_of_samples(pipelines, stage):
    """Means over independent batches agree within five standard errors."""
    ours, plain = pipelines
    ours.set_stage(stage)
    np.random.seed(0)
    random.seed(0)
    found, sizes = ([], []), (set(), set())
    for _ in range(24):
        indices = np.random.randint(24, size=4).tolist()
        batch = ours.preprocessor(ours.samples(indices), training=True)
        samples = batch['data_samples']
        pairs = (
            (batch['inputs'], [sample.gt_instances.bboxes for sample in samples]),
            plain.batch(indices, stage.label),
        )
        for (images, boxes), of_batches, seen in zip(pairs, found, sizes, strict=True):
            assert images.dtype == torch.float32
            assert 0 <= images.min() < images.max() <= 1
            seen.add(images.shape[-1])
            of_batches.append(np.nanmean(describe(images, boxes), axis=0))
    first, second = map(np.array, found)
    error = np.sqrt((first.var(axis=0) + second.var(axis=0)) / len(first)) + 2e-3
    assert np.all(np.abs(first.mean(axis=0) - second.mean(axis=0)) < 5 * error)
    if stage is Stage.NO_AUG:
        assert sizes[0] == sizes[1] == {640}
    else:
        assert min(len(seen) for seen in sizes) > 4


def test_the_command_writes_its_results(monkeypatch, tmp_path, capsys):
    out = tmp_path / 'speed.json'
    arguments = ['--rounds', '1', '--batches', '1', '--batch-size', '2', '--out', str(out)]
    threads = data_pipeline.cv2.getNumThreads()
    monkeypatch.setattr(sys, 'argv', ['data_pipeline.py', *arguments])
    try:
        data_pipeline.main()
    finally:
        data_pipeline.cv2.setNumThreads(threads)
    results = json.loads(out.read_text())
    assert list(results['stages']) == [stage.label for stage in Stage]
    for row in results['stages'].values():
        assert row['ratio'] > 0
        assert row['samples_per_s'] > row['images_per_s'] > 0
    assert results['environment']['torch'] == torch.__version__
    assert 'no-augmentation' in capsys.readouterr().out


def test_half_of_the_data_options_is_refused(monkeypatch, capsys):
    monkeypatch.setattr(sys, 'argv', ['data_pipeline.py', '--ann-file', 'a.json'])
    with pytest.raises(SystemExit):
        data_pipeline.main()
    assert '--ann-file and --img-dir go together' in capsys.readouterr().err
