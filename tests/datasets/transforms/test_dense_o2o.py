import copy
import pickle

from deim_mmdet.datasets import DenseO2O
from deim_mmdet.utils import Stage

import cv2
import numpy as np
import pytest
import torch
from mmdet.datasets import MultiImageMixDataset
from mmengine.dataset import pseudo_collate
from torch.utils.data import DataLoader

LOAD = [{'type': 'LoadImageChecked'}, {'type': 'LoadAnnotations', 'with_bbox': True}]
MOSAIC = [{'type': 'DenseO2OMosaic', 'tile_size': 16}]
SINGLE = [{'type': 'DenseO2OZoomOut', 'prob': 1, 'ratio_range': (2, 2)}]
# What became of an image of 40 x 60, by its size: 32 x 48 are four tiles of 16 x 24.
KINDS = {(40, 60): 'plain', (32, 48): 'mosaic', (80, 120): 'single'}


@pytest.fixture
def build(make_coco):
    """Function (boxes=None, then=(), **of DenseO2O) -> dataset of twelve images of 40 x 60."""

    def build(boxes=None, then=(), **options):
        root = make_coco([(40, 60)] * 12, boxes)
        inner = {
            'type': 'CheckedCocoDataset',
            'data_root': str(root),
            'ann_file': 'ann.json',
            'data_prefix': {'img': ''},
            'pipeline': [],
        }
        switch = {'type': 'DenseO2O', 'load': LOAD, 'mosaic': MOSAIC, 'single': SINGLE, **options}
        return MultiImageMixDataset(inner, [switch, *then, {'type': 'PackDetInputs'}])

    return build


def kind_of(item):
    return KINDS[tuple(item['inputs'].shape[-2:])]


@pytest.mark.parametrize(
    ('stage', 'mosaic_prob', 'expected'),
    [
        (Stage.WARM_UP, 1, {'plain'}),
        (Stage.DENSE, 1, {'mosaic'}),
        (Stage.DENSE, 0, {'single'}),
        (Stage.FLAT, 1, {'single'}),
        (Stage.NO_AUG, 1, {'plain'}),
    ],
)
def test_what_each_stage_does(build, stage, mosaic_prob, expected):
    dataset = build(mosaic_prob=mosaic_prob)
    dataset.pipeline[0].set_stage(stage)
    assert {kind_of(dataset[index]) for index in range(12)} == expected


def test_is_dense_before_any_hook_speaks_with_an_even_coin(build):
    np.random.seed(0)
    dataset = build()
    seen = [kind_of(dataset[index % 12]) for index in range(400)]
    assert set(seen) == {'mosaic', 'single'}
    assert seen.count('mosaic') / 400 == pytest.approx(0.5, abs=0.1)


def test_without_mosaic_it_stands_in_any_pipeline(build):
    dataset = build(mosaic=None)
    assert {kind_of(dataset[index]) for index in range(12)} == {'single'}
    plain = build().dataset
    transform = DenseO2O(load=LOAD)
    assert transform.transform(plain[0])['img'].shape == (40, 60, 3)


def test_warm_up_gives_image_and_boxes_as_they_are(build):
    dataset = build(boxes=[[(10, 5, 20, 10), (-5, 30, 10, 20)]] * 12)
    dataset.pipeline[0].set_stage(Stage.WARM_UP)
    item = dataset[3]
    # Clipped to the image.
    boxes = item['data_samples'].gt_instances.bboxes.tensor
    assert boxes.tolist() == [[10, 5, 30, 15], [0, 30, 5, 40]]
    loaded = DenseO2O(load=LOAD).load(dataset.dataset[3])['img']
    assert np.array_equal(item['inputs'].permute(1, 2, 0).numpy(), loaded)


def test_boxes_are_clipped_before_the_zoom_out(build):
    dataset = build(boxes=[[(-5, -5, 100, 100)]] * 12, mosaic=None)
    sample = dataset[0]['data_samples']
    box = sample.gt_instances.bboxes.tensor[0]
    assert (box[2:] - box[:2]).tolist() == [60, 40]


def test_a_mosaic_is_made_of_the_sample_and_its_partners(build):
    # One object per image: as many as images that are visible after the map.
    dataset = build(
        mosaic_prob=1,
        mosaic=[{**MOSAIC[0], 'rotation': 0, 'translation': 0, 'scale_range': (1, 1)}],
    )
    for index in range(12):
        sample = dataset[index]['data_samples']
        assert len(sample.gt_instances) == 4
        assert sample.img_id == index


def test_objects_under_the_least_size_are_dropped(build):
    """At the size of the augmented image: zoomed out by 2, the sides stay as they are."""
    boxes = [(0, 0, 12, 12), (10, 10, 11.5, 20), (20, 5, 20, 11.9), (5, 5, 40, 30)]
    for stage in (Stage.FLAT, Stage.NO_AUG):
        dataset = build(boxes=[boxes] * 12, mosaic=None, min_size=12)
        dataset.pipeline[0].set_stage(stage)
        found = dataset[0]['data_samples'].gt_instances.bboxes.tensor
        sides = (found[:, 2:] - found[:, :2]).tolist()
        assert sides == [[12, 12], [40, 30]]


@pytest.mark.parametrize('stage', [Stage.DENSE, Stage.FLAT])
def test_a_transform_without_sample_is_tried_again(build, stage):
    """mmdet's RandomCrop gives None where no object is left, and so do some of Albumentations."""
    crop = {'type': 'RandomCrop', 'crop_size': (30, 20)}
    boxes = [[(0, 0, 20, 14)]] * 12
    dataset = build(boxes=boxes, mosaic_prob=1, single=[crop], mosaic=[*MOSAIC, crop])
    dataset.pipeline[0].set_stage(stage)
    np.random.seed(0)
    for index in range(12):
        item = dataset[index]
        assert item['inputs'].shape[-2:] == (20, 30)
        assert len(item['data_samples'].gt_instances)


@pytest.mark.parametrize('stage', list(Stage))
def test_images_without_objects_pass(build, stage):
    dataset = build(boxes=[[]] * 12)
    dataset.pipeline[0].set_stage(stage)
    for index in range(12):
        assert len(dataset[index]['data_samples'].gt_instances) == 0


def test_persistent_workers_obey_a_change_of_stage(build):
    dataset = build()
    loader = DataLoader(
        dataset,
        batch_size=4,
        num_workers=2,
        persistent_workers=True,
        collate_fn=pseudo_collate,
    )
    expected = {
        Stage.WARM_UP: {'plain'},
        Stage.DENSE: {'mosaic', 'single'},
        Stage.FLAT: {'single'},
        Stage.NO_AUG: {'plain'},
    }
    for stage in (*Stage, Stage.DENSE, Stage.WARM_UP):
        dataset.pipeline[0].set_stage(stage)
        seen = {KINDS[tuple(i.shape[-2:])] for batch in loader for i in batch['inputs']}
        # The dense stage draws: of twelve samples both kinds but once in 2000.
        assert seen == expected[stage]


def test_stage_is_shared_with_processes_that_get_a_pickled_copy():
    transform = DenseO2O(load=LOAD, single=SINGLE)
    worker = torch.multiprocessing.get_context('spawn').Process(target=_set_flat, args=(transform,))
    worker.start()
    worker.join()
    assert worker.exitcode == 0
    assert 'stage=flat' in repr(transform)


def _set_flat(transform):
    transform.set_stage(Stage.FLAT)


def test_samples_are_reproducible_from_the_seed(build):
    dataset = build()
    runs = []
    for _ in range(2):
        np.random.seed(5)
        runs.append([dataset[index]['inputs'] for index in range(12)])
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_bad_use_is_named(build):
    with pytest.raises(ValueError, match='got no mix_results: wrap the dataset in Multi'):
        DenseO2O(load=LOAD, mosaic=MOSAIC).transform(build().dataset[0])
    with pytest.raises(ValueError, match=r'exactly one transform that draws partners.*got 0'):
        DenseO2O(load=LOAD, mosaic=SINGLE)
    with pytest.raises(ValueError, match=r'mosaic_prob must be a number in \[0, 1\].*got 2'):
        DenseO2O(load=LOAD, mosaic=MOSAIC, mosaic_prob=2)


def test_large_jpegs_of_a_mosaic_are_decoded_at_a_reduced_size(tmp_path, monkeypatch, make_sample):
    """Boxes and picture stay those of a mosaic of whole images."""
    sample = make_sample([[64, 48, 160, 160], [240, 80, 360, 240]], 300, 400)
    img = cv2.GaussianBlur(sample['img'], (0, 0), 4)
    cv2.imwrite(str(tmp_path / 'a.jpg'), img, [cv2.IMWRITE_JPEG_QUALITY, 95])
    info = {
        'img_path': str(tmp_path / 'a.jpg'),
        'instances': [
            {'bbox': box, 'bbox_label': 0, 'ignore_flag': 0}
            for box in sample['gt_bboxes'].tensor.tolist()
        ],
    }
    results = {}
    for tile_size, key in ((64, 'reduced'), (64, 'whole')):
        mosaic = [{**MOSAIC[0], 'tile_size': tile_size, 'scale': (96, 96)}]
        transform = DenseO2O(load=LOAD, mosaic=mosaic, mosaic_prob=1)
        if key == 'whole':
            monkeypatch.setattr(transform, '_tile_size', None)
        inputs = copy.deepcopy([info] * 4)
        np.random.seed(1)
        results[key] = transform.transform({**inputs[0], 'mix_results': inputs[1:]})
    reduced, whole = results['reduced'], results['whole']
    assert 'shorter_side' not in reduced
    assert torch.allclose(reduced['gt_bboxes'].tensor, whole['gt_bboxes'].tensor, atol=0.05)
    difference = np.abs(reduced['img'].astype(int) - whole['img'])
    assert 0 < difference.mean() < 1.5


def test_missing_image_stops_with_its_name(build):
    dataset = build(mosaic=None)
    info = dataset.dataset[0]
    info['img_path'] += '.gone'
    with pytest.raises(FileNotFoundError, match=r'0\.png\.gone'):
        dataset.pipeline[0].transform(info)


def test_mosaic_alone_in_a_plain_pipeline(make_coco):
    root = make_coco([(40, 60)] * 4)
    dataset = MultiImageMixDataset(
        {
            'type': 'CocoDataset',
            'metainfo': {'classes': ('cat', 'dog')},
            'data_root': str(root),
            'ann_file': 'ann.json',
            'data_prefix': {'img': ''},
            'pipeline': [{'type': 'LoadImageFromFile'}, LOAD[1]],
        },
        [MOSAIC[0], {'type': 'PackDetInputs'}],
    )
    assert {kind_of(dataset[index]) for index in range(4)} == {'mosaic'}


def test_data_set_survives_pickling(build):
    dataset = pickle.loads(pickle.dumps(build(mosaic=None)))
    assert kind_of(dataset[0]) == 'single'
