import pickle
import random
from pathlib import Path

from deim_mmdet.datasets import DenseO2ODataset
from deim_mmdet.datasets.transforms.loading import UnreadableImageError

import cv2
import numpy as np
import pytest
import torch
from mmcv.transforms import BaseTransform
from mmdet.datasets import MultiImageMixDataset
from mmdet.datasets.samplers import ClassAwareSampler
from mmdet.registry import DATASETS, TRANSFORMS
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.utils.dl_utils import set_multi_processing
from torch.utils.data import DataLoader

LOAD = [{'type': 'LoadImageChecked'}, {'type': 'LoadAnnotations', 'with_bbox': True}]
PIPELINE = [
    {
        'type': 'DenseO2O',
        'load': LOAD,
        'mosaic': [{'type': 'DenseO2OMosaic', 'tile_size': 16}],
        'single': [{'type': 'DenseO2OZoomOut'}, {'type': 'DenseO2OIoUCrop'}],
    },
    {'type': 'RandomFlip', 'prob': 0.5},
    {'type': 'Resize', 'scale': (32, 32), 'keep_ratio': False},
    {'type': 'DropTinyBoxes'},
    {'type': 'PackDetInputs'},
]


@TRANSFORMS.register_module()
class Refuses(BaseTransform):
    """Gives None ``times`` times in a row, having written into the sample; needs a partner."""

    def __init__(self, times):
        self.times, self.calls = times, []

    def get_indexes(self, dataset):
        return [len(self.calls) % len(dataset)]

    def transform(self, results):
        assert 'mark' not in results
        results['mark'] = True
        self.calls.append(results['mix_results'][0]['img_id'])
        return None if len(self.calls) <= self.times else results


@TRANSFORMS.register_module()
class CountThreads(BaseTransform):
    """Threads of OpenCV and torch in place of the sample."""

    def transform(self, results):
        return {'opencv': cv2.getNumThreads(), 'torch': torch.get_num_threads()}


@pytest.fixture
def opencv_threads():
    """Restores the number of OpenCV's threads."""
    threads = cv2.getNumThreads()
    yield
    cv2.setNumThreads(threads)


@pytest.fixture
def build(make_coco):
    """Function (kind, pipeline, **options) -> data set of six images of noise."""

    def build(kind, pipeline, **options):
        inner = {
            'type': 'CheckedCocoDataset',
            'data_root': str(make_coco([(40, 60), (50, 30)] * 3)),
            'ann_file': 'ann.json',
            'data_prefix': {'img': ''},
            'pipeline': [],
        }
        return kind(inner, pipeline, **options)

    return build


@pytest.mark.parametrize('skip', [None, ['RandomFlip']])
def test_gives_the_samples_of_mmdet(build, skip):
    samples = []
    for kind in (MultiImageMixDataset, DenseO2ODataset):
        np.random.seed(0)
        dataset = build(kind, PIPELINE, skip_type_keys=skip)
        samples.append([dataset[index % 6] for index in range(60)])
    for theirs, ours in zip(*samples, strict=True):
        assert (ours['inputs'] == theirs['inputs']).all()
        expected, sample = theirs['data_samples'], ours['data_samples']
        assert sample.metainfo == expected.metainfo
        assert (sample.gt_instances.bboxes.tensor == expected.gt_instances.bboxes.tensor).all()
        assert (sample.gt_instances.labels == expected.gt_instances.labels).all()


def test_samplers_that_balance_classes_find_the_labels(build):
    """Classes of each image's own objects; those of partners are drawn with the sample."""
    dataset = build(DenseO2ODataset, PIPELINE)
    sampler = ClassAwareSampler(dataset, seed=0)
    for label, images in sampler.cat_dict.items():
        expected = [
            index
            for index in range(6)
            if label in [box['bbox_label'] for box in dataset.dataset[index]['instances']]
        ]
        assert images == expected
    assert {*map(int, sampler)} <= {*range(6)}


def test_samples_do_not_change_the_data_set(build):
    dataset = build(DenseO2ODataset, PIPELINE)
    before = [dataset.dataset.get_data_info(index) for index in range(6)]
    for index in range(36):
        dataset[index % 6]
    assert [dataset.dataset.get_data_info(index) for index in range(6)] == before


def test_a_transform_without_sample_is_tried_again_with_other_partners(build):
    dataset = build(DenseO2ODataset, [{'type': 'Refuses', 'times': 2}])
    results = dataset[4]
    assert dataset.pipeline[0].calls == [0, 1, 2]
    assert results['img_id'] == 4
    assert 'mix_results' not in results


def test_a_transform_that_gave_up_leaves_no_trace(make_coco):
    """mmdet's RandomCrop has moved the boxes before it finds that none is inside."""
    root = make_coco([(60, 80)], [[(40, 20, 20, 10)]])
    image = np.zeros((60, 80, 3), np.uint8)
    image[20:30, 40:60] = 255
    cv2.imwrite(str(root / '0.png'), image)
    inner = {
        'type': 'CheckedCocoDataset',
        'data_root': str(root),
        'ann_file': 'ann.json',
        'data_prefix': {'img': ''},
        'pipeline': LOAD,
    }
    crop = [{'type': 'RandomCrop', 'crop_size': (30, 30)}, {'type': 'PackDetInputs'}]
    dataset = DenseO2ODataset(inner, crop, max_refetch=1000)
    np.random.seed(0)
    for _ in range(50):
        pixels, boxes = pixels_and_boxes(dataset[0])
        rows, columns = pixels[0].nonzero().T
        white = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert boxes.tolist() == [[float(side) for side in white]]


@pytest.mark.parametrize('kind', ['Mosaic', 'MixUp', 'CachedMixUp'])
def test_gives_transforms_of_mmdet_their_partners(build, kind):
    """MixUp asks for one partner by a number, Mosaic for three by a list."""
    samples = []
    for wrapper in (MultiImageMixDataset, DenseO2ODataset):
        dataset = build(wrapper, [{'type': kind, 'img_scale': (32, 32)}])
        dataset.dataset.pipeline = Compose([TRANSFORMS.build(t) for t in LOAD])
        np.random.seed(0)
        random.seed(0)
        samples.append([dataset[index % 6] for index in range(12)])
    for theirs, ours in zip(*samples, strict=True):
        assert np.array_equal(ours['img'], theirs['img'])
        assert torch.equal(ours['gt_bboxes'].tensor, theirs['gt_bboxes'].tensor)


def test_partners_that_nothing_has_loaded_are_refused(build):
    dataset = build(DenseO2ODataset, [*LOAD, {'type': 'MixUp', 'img_scale': (32, 32)}])
    with pytest.raises(ValueError, match=r'MixUp mixes other samples in, but nothing has loaded'):
        dataset[0]


def test_no_sample_in_all_tries_is_named(build):
    dataset = build(DenseO2ODataset, [{'type': 'Refuses', 'times': 9}], max_refetch=3)
    with pytest.raises(RuntimeError, match=r'Refuses gave no sample in 3 tries for .*4\.png'):
        dataset[4]


@pytest.mark.parametrize('bad', [{2}, {0, 1, 3, 4, 5}])
def test_unreadable_images_are_skipped_where_asked_for(build, bad):
    dataset = build(DenseO2ODataset, PIPELINE, skip_unreadable=True, max_refetch=1000)
    paths = [dataset.dataset.get_data_info(index)['img_path'] for index in range(6)]
    for index in bad:
        Path(paths[index]).write_bytes(b'')
    seen = {dataset[index % 6]['data_samples'].img_path for index in range(60)}
    assert seen == {path for index, path in enumerate(paths) if index not in bad}


def test_unreadable_images_end_training_where_not_asked_for_or_where_all_are(build):
    dataset = build(DenseO2ODataset, PIPELINE, skip_unreadable=True, max_refetch=3)
    for index in range(6):
        Path(dataset.dataset.get_data_info(index)['img_path']).write_bytes(b'')
    for dataset.skip_unreadable in (True, False):
        with pytest.raises(UnreadableImageError, match=r'is empty \(0 bytes\).*skip_unreadable'):
            dataset[4]


def test_forked_workers_use_one_thread_each(build, repo_root, opencv_threads):
    config = Config.fromfile(repo_root / 'configs/_base_/default_runtime.py')
    dataset = build(DenseO2ODataset, [{'type': 'CountThreads'}])
    cv2.setNumThreads(4)
    set_multi_processing(**config.env_cfg.mp_cfg)
    loader = DataLoader(dataset, batch_size=None, num_workers=1, multiprocessing_context='fork')
    assert [*loader] == [{'opencv': 1, 'torch': 1}] * 6


def test_copies_in_other_processes_take_over_the_threads(build, opencv_threads):
    dataset = build(DenseO2ODataset, PIPELINE)
    cv2.setNumThreads(1)
    pickled = pickle.dumps(dataset)
    cv2.setNumThreads(4)
    copied = pickle.loads(pickled)
    assert cv2.getNumThreads() == 1
    assert vars(copied).keys() == vars(dataset).keys()
    assert len(copied) == 6
    assert copied[0]['inputs'].shape == (3, 32, 32)


def pixels_and_boxes(sample):
    return sample['inputs'], sample['data_samples'].gt_instances.bboxes.tensor


def epoch_of(loader):
    """Content of all samples of one pass, in the order of the images."""
    samples = sorted(loader, key=lambda sample: sample['data_samples'].img_id)
    return [pixels_and_boxes(sample) for sample in samples]


def differences(ours, theirs):
    """Number of samples that differ."""
    assert len(ours) == len(theirs)
    return sum(
        not all(map(torch.equal, first, second)) for first, second in zip(ours, theirs, strict=True)
    )


@pytest.mark.parametrize(
    'workers',
    [
        dict(num_workers=0),
        dict(num_workers=1, persistent_workers=True),
        dict(num_workers=3, persistent_workers=True, prefetch_factor=4),
        dict(num_workers=2),
    ],
    ids=['none', 'persistent', 'many', 'restarted'],
)
def test_samples_follow_from_seed_epoch_and_index(build, workers):
    """Whatever makes them: samples of a fresh copy, one by one in reverse, are the truth."""
    dataset = build(DenseO2ODataset, PIPELINE)
    loader = DataLoader(dataset, batch_size=None, shuffle=True, **workers)
    truth = build(DenseO2ODataset, PIPELINE)
    epochs = []
    for epoch in (0, 1, 2):
        np.random.seed(epoch)
        dataset.set_seed(11, epoch)
        truth.set_seed(11, epoch)
        expected = [pixels_and_boxes(truth[index]) for index in reversed(range(6))][::-1]
        epochs.append(epoch_of(loader))
        assert differences(epochs[-1], expected) == 0
    assert differences(epochs[0], epochs[1]) == 6
    dataset.set_seed(12, 2)
    assert differences(epochs[2], epoch_of(loader)) == 6


def test_a_seeded_data_set_leaves_the_generators_alone(build):
    dataset = build(DenseO2ODataset, PIPELINE)
    dataset.set_seed(0, 0)
    np.random.seed(1)
    expected = np.random.rand()
    np.random.seed(1)
    dataset[3]
    assert np.random.rand() == expected


def test_is_registered():
    assert DATASETS.get('DenseO2ODataset') is DenseO2ODataset
