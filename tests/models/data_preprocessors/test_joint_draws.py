"""Processes draw one size for a step, and each its own of all else."""

from deim_mmdet.engine.processes import init_gloo
from deim_mmdet.models.data_preprocessors import DenseO2OMixUp, DenseO2OMultiScale, multi_scale

import numpy as np
import torch
from mmdet.structures import DetDataSample
from processes import in_processes

STEPS = 40


def sizes_of(augment, side=320):
    return [augment(torch.zeros(1, 3, side, side), [])[0].shape[-1] for _ in range(STEPS)]


def test_sizes_follow_from_the_seed_of_the_step_alone():
    drawn = []
    for augment in (DenseO2OMultiScale(), DenseO2OMultiScale(base_size=320)):
        sizes = []
        for step in range(STEPS):
            np.random.seed(len(drawn))
            augment.set_step_seed(1 << 63 | step)
            sizes += sizes_of(augment)[:1]
        drawn.append(sizes)
    assert drawn[0] == drawn[1]
    assert set(drawn[0]) == {224, 256, 288, 320, 352, 384}


def test_draws_leave_the_generators_of_the_process_alone():
    augment = DenseO2OMultiScale()
    augment.set_step_seed(0)
    np.random.seed(3)
    expected = np.random.rand()
    np.random.seed(3)
    sizes_of(augment)
    assert np.random.rand() == expected


def test_batches_of_other_sizes_are_scaled_alike():
    """An image of a process that is wider than those of another is as much larger as before."""
    scales = []
    for side in (640, 1280):
        augment = DenseO2OMultiScale(base_size_repeat=1)
        augment.set_step_seed(0)
        scales.append(np.array(sizes_of(augment, side)) / side)
    assert np.abs(scales[0] - scales[1]).max() < 0.05
    assert np.ptp(scales[0]) > 0.3


def draw_with_the_plain_runner():
    """Sizes and mixup's shares of a process, and how often it met the others for them."""
    init_gloo('pytorch', 60)
    np.random.seed(torch.distributed.get_rank())
    meetings = []

    def counted():
        meetings.append(1)
        return agree()

    agree, multi_scale.sync_random_seed = multi_scale.sync_random_seed, counted
    resize, mix = DenseO2OMultiScale(), DenseO2OMixUp(prob=1)
    sizes, shares = [], []
    for _ in range(STEPS):
        sizes.append(resize(torch.zeros(1, 3, 320, 320), [])[0].shape[-1])
        images = torch.stack([torch.zeros(3, 1, 1), torch.ones(3, 1, 1)])
        shares.append(float(mix(images, [DetDataSample(), DetDataSample()])[0][0, 0]))
    return sizes, shares, len(meetings)


def test_processes_agree_once_where_no_hook_sets_the_seeds(tmp_path):
    first, second = in_processes(draw_with_the_plain_runner, 2, folder=tmp_path)
    assert first[0] == second[0]
    assert len(set(first[0])) == 6
    assert all(ours != theirs for ours, theirs in zip(first[1], second[1], strict=True))
    assert first[2] == second[2] == 1
