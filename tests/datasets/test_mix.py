import numpy as np
import pytest
from mmcv.transforms import BaseTransform
from mmdet.datasets import MultiImageMixDataset
from mmdet.registry import DATASETS, TRANSFORMS

from deim_mmdet.datasets import DenseO2ODataset

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


def test_no_sample_in_all_tries_is_named(build):
    dataset = build(DenseO2ODataset, [{'type': 'Refuses', 'times': 9}], max_refetch=3)
    with pytest.raises(RuntimeError, match=r'Refuses gave no sample in 3 tries for .*4\.png'):
        dataset[4]


def test_is_registered():
    assert DATASETS.get('DenseO2ODataset') is DenseO2ODataset
