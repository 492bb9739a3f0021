"""Images with more objects than detections count; pycocotools says how many count."""

import contextlib
import copy
import inspect
import io
import json

from deim_mmdet.data_checks.config import check_datasets
from deim_mmdet.models.dense_heads import DFINEHead, RTDETRHead, TopKPostprocess
from deim_mmdet.models.layers import QuerySelection

import pytest
from mmengine.config import Config
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from typed_configs import SPELLINGS, spelled

CATEGORIES = {'cat': 3, 'dog': 7}
COCO_METRIC = dict(type='CocoMetric', metric='bbox')


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv('DEIM_MMDET_CACHE', str(tmp_path / 'cache'))
    return tmp_path / 'cache' / 'checks'


def write_crowds(folder, images):
    """``all.json`` with a name and numbers of objects by class for each image, on a grid."""
    content = dict(
        images=[],
        annotations=[],
        categories=[dict(id=id, name=name) for name, id in CATEGORIES.items()],
    )
    for number, (name, counts) in enumerate(images.items(), 1):
        content['images'].append(dict(id=number, file_name=name, height=1000, width=1000))
        labels = [CATEGORIES[label] for label, count in counts.items() for _ in range(count)]
        for place, category_id in enumerate(labels):
            content['annotations'].append(
                dict(
                    id=len(content['annotations']) + 1,
                    image_id=number,
                    category_id=category_id,
                    bbox=[place % 30 * 30, place // 30 * 30, 20, 20],
                    area=400,
                    iscrowd=0,
                )
            )
    path = folder / 'all.json'
    path.write_text(json.dumps(content))
    return path


def config_of(folder, evaluator=None, model=None, split='val', **options):
    dataset = dict(
        type='CheckedCocoDataset',
        data_root=str(folder),
        ann_file='all.json',
        data_prefix=dict(img=''),
        test_mode=True,
        **options,
    )
    content = {f'{split}_dataloader': dict(dataset=dataset), f'{split}_evaluator': evaluator}
    return Config(content | (dict(model=model) if model else {}))


def found_in(config):
    """What is said of each image that is reported."""
    [report] = check_datasets(config)
    assert not report.breaks
    count = report.problems.get('beyond_metric_limit')
    return {} if count is None else {e['image']: e['says'] for e in count.examples}


CROWDS = {f'{count}.png': dict(cat=count) for count in (100, 101, 200, 400)}


def test_images_beyond_the_100_of_coco_are_named_with_their_counts(tmp_path):
    write_crowds(tmp_path, CROWDS)
    found = found_in(config_of(tmp_path, COCO_METRIC))
    assert list(found) == ['101.png', '200.png', '400.png']
    for count in (101, 200, 400):
        assert found[f'{count}.png'] == (
            f'{count}.png ({count} of one class, proposal_nums lets 100 count)'
        )
    [report] = check_datasets(config_of(tmp_path, COCO_METRIC, split='test'))
    text = report.text()
    assert '3 images with more objects than detections that count' in text
    assert '(1, 10, 500)' in text


def test_numbers_of_proposals_count(tmp_path):
    write_crowds(tmp_path, CROWDS)
    for proposal_nums, found in {
        (1, 10, 500): [],
        (1, 10, 250): ['400.png'],
        (500, 10, 1): [],
        # With 100 among them, AP is that of 100.
        (100, 300, 500): ['101.png', '200.png', '400.png'],
    }.items():
        evaluator = dict(type='CheckedCocoMetric', proposal_nums=proposal_nums)
        assert list(found_in(config_of(tmp_path, evaluator))) == found


@pytest.mark.parametrize('spelling', SPELLINGS)
def test_evaluators_in_every_form(tmp_path, spelling):
    write_crowds(tmp_path, CROWDS)
    wide = dict(type='CheckedCocoMetric', proposal_nums=(1, 10, 500))
    other = dict(type='VOCMetric')
    for evaluators, count in (
        (wide, 0),
        ([other, wide], 0),
        ([other, wide, COCO_METRIC], 3),
        (dict(type='mmengine.evaluator.Evaluator', metrics=[COCO_METRIC]), 3),
        (other, 0),
        (None, 0),
    ):
        found = found_in(config_of(tmp_path, spelled(evaluators, spelling)))
        assert len(found) == count, evaluators


def coco_recall(path, most):
    """The least recall by COCO's evaluation of detections that are the annotated boxes."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(path))
        found = truth.loadRes(
            [
                {**{k: a[k] for k in ('image_id', 'category_id', 'bbox')}, 'score': 0.5}
                for a in truth.dataset['annotations']
            ]
        )
        evaluation = COCOeval(truth, found, 'bbox')
        evaluation.params.maxDets = [1, 10, most]
        evaluation.evaluate()
        evaluation.accumulate()
    recall = evaluation.eval['recall'][:, :, 0, -1]
    # -1: there is no object of the class.
    return recall[recall >= 0].min()


@pytest.mark.parametrize('most', [100, 105])
def test_what_is_reported_is_what_coco_does_not_count(tmp_path, most):
    """The limit holds for each class of an image."""
    evaluator = dict(type='CheckedCocoMetric', proposal_nums=(1, 10, most))
    for counts in (dict(cat=most), dict(cat=most + 1), dict(cat=99, dog=99), dict(cat=9, dog=110)):
        path = write_crowds(tmp_path, {'crowd.png': counts})
        everything_counts = coco_recall(path, most) == 1
        assert (found_in(config_of(tmp_path, evaluator)) == {}) == everything_counts


def test_the_models_limits_are_of_all_objects(tmp_path):
    write_crowds(
        tmp_path,
        {
            '300.png': dict(cat=200, dog=100),
            '301.png': dict(cat=200, dog=101),
            '400.png': dict(cat=400),
        },
    )
    wide = dict(type='CheckedCocoMetric', proposal_nums=(1, 10, 500))

    def found(**model):
        return found_in(config_of(tmp_path, wide, model))

    kept = 'model.bbox_head.postprocess.max_per_img'
    queries = 'model.bbox_head.query_selection.num_queries'
    ours = dict(bbox_head=dict(type='DFINEHead'))
    assert found(**ours) == {
        f'{count}.png': f'{count}.png ({count} objects, {kept} is 300; '
        f'{count} objects, {queries} is 300)'
        for count in (301, 400)
    }
    assert found(**ours, test_cfg=dict(max_per_img=350)).keys() == {'301.png', '400.png'}
    parts = dict(query_selection=dict(num_queries=350), postprocess=dict(max_per_img=400))
    enough = dict(bbox_head=dict(type=RTDETRHead, **copy.deepcopy(parts)))
    assert found(**enough) == {'400.png': f'400.png (400 objects, {queries} is 350)'}
    enough['bbox_head']['query_selection']['num_queries'] = 400
    assert found(**enough) == {}
    # As version 0.1 wrote it.
    flat = dict(bbox_head=dict(type=RTDETRHead, num_queries=350), test_cfg=dict(max_per_img=400))
    assert found(**flat) == found(bbox_head=dict(type=RTDETRHead, **parts))
    # What other detectors do where nothing is said isn't known.
    assert found(bbox_head=dict(type='RetinaHead')) == {}
    assert found(bbox_head=dict(type='RetinaHead'), test_cfg=dict(max_per_img=100)).keys() == {
        *('300.png', '301.png', '400.png')
    }


@pytest.mark.parametrize('head', [DFINEHead, RTDETRHead])
@pytest.mark.parametrize(
    ('part', 'setting'), [(QuerySelection, 'num_queries'), (TopKPostprocess, 'max_per_img')]
)
def test_the_defaults_are_those_of_the_parts(tmp_path, head, part, setting):
    default = inspect.signature(part).parameters[setting].default
    write_crowds(tmp_path, {'a.png': dict(cat=default), 'b.png': dict(cat=default + 1)})
    config = config_of(tmp_path, model=dict(bbox_head=dict(type=head)))
    assert list(found_in(config)) == ['b.png']


def test_only_objects_that_are_evaluated_count(tmp_path):
    path = write_crowds(tmp_path, {'a.png': dict(cat=105), 'b.png': dict(dog=105)})
    content = json.loads(path.read_text())
    for annotation, change in zip(
        content['annotations'],
        [dict(iscrowd=1), dict(bbox=[1, 1, 0, 5]), dict(bbox=[2000, 1, 5, 5]), dict(ignore=1)],
        strict=False,
    ):
        annotation.update(change)
    path.write_text(json.dumps(content))
    assert list(found_in(config_of(tmp_path, COCO_METRIC))) == ['a.png', 'b.png']
    content['annotations'][4]['iscrowd'] = 1
    path.write_text(json.dumps(content))
    assert list(found_in(config_of(tmp_path, COCO_METRIC))) == ['b.png']
    only_cats = config_of(tmp_path, COCO_METRIC, metainfo=dict(classes=('cat',)))
    assert found_in(only_cats) == {}


def test_training_sets_have_no_such_limit(tmp_path):
    write_crowds(tmp_path, CROWDS)
    config = config_of(tmp_path, COCO_METRIC, dict(bbox_head=dict(type='DFINEHead')))
    config.train_dataloader = config.val_dataloader
    training, validation = check_datasets(config)
    assert (training.splits, validation.splits) == (['training'], ['validation'])
    assert 'beyond_metric_limit' not in training.problems
    assert 'beyond_metric_limit' in validation.problems


def test_the_cache_tells_limits_apart(tmp_path, cache):
    write_crowds(tmp_path, CROWDS)
    wide = dict(type='CheckedCocoMetric', proposal_nums=(1, 10, 250))
    configs = [
        config_of(tmp_path, COCO_METRIC),
        config_of(tmp_path, wide),
        config_of(tmp_path, wide, dict(test_cfg=dict(max_per_img=150))),
    ]
    for _ in range(2):
        assert [len(found_in(config)) for config in configs] == [3, 1, 2]
    assert len(list(cache.iterdir())) == 3


def test_a_validation_set_that_is_the_test_set_is_checked_once(tmp_path):
    write_crowds(tmp_path, CROWDS)
    config = config_of(tmp_path, COCO_METRIC)
    config.test_dataloader, config.test_evaluator = config.val_dataloader, config.val_evaluator
    [report] = check_datasets(config)
    assert report.splits == ['validation', 'test']
    assert report.problems['beyond_metric_limit'].count == 3
