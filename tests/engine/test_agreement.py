"""Data sets, evaluators and checkpoints that fit each other, are made to, or are refused."""

import copy
import json
import shutil
from types import SimpleNamespace
from unittest import mock

from deim_mmdet.checkpoints.files import read_checkpoint
from deim_mmdet.engine import CheckpointCheckHook, DEIMRunner
from deim_mmdet.engine.agreement import named_categories
from deim_mmdet.evaluation import CheckedCocoMetric

import pytest
import torch
import toy
from mmdet.evaluation import CocoMetric
from mmdet.registry import DATASETS, METRICS, MODELS
from mmengine.config import Config
from mmengine.evaluator import BaseMetric
from mmengine.runner import Runner
from torch import nn

pytestmark = pytest.mark.slow

NAMES = ('disc', 'ring')


@MODELS.register_module()
class FirstClassDetector(toy.ToyDetector):
    """Finds the objects of the class that its first score stands for, and no others."""

    def predict(self, inputs, data_samples, rescale=True):
        for sample in super().predict(inputs, data_samples, rescale):
            sample.pred_instances.bboxes = inputs.new_tensor(
                TRUTH[sample.img_path.rsplit('/', 1)[1]]
            )
            count = len(sample.pred_instances.bboxes)
            sample.pred_instances = sample.pred_instances.new(
                bboxes=sample.pred_instances.bboxes,
                scores=torch.full((count,), 0.9),
                labels=torch.zeros(count, dtype=torch.long),
            )
        return data_samples


@METRICS.register_module()
class CountingMetric(BaseMetric):
    """How many objects of each class the samples have, by the name that it has there."""

    default_prefix = 'count'

    def process(self, data_batch, data_samples):
        for sample in data_samples:
            classes = self.dataset_meta['classes']
            self.results.append([classes[label] for label in sample['gt_instances']['labels']])

    def compute_metrics(self, results):
        names = [name for names in results for name in names]
        return {name: names.count(name) for name in sorted(set(names))}


# Boxes of the discs, by image.
TRUTH = {}


@pytest.fixture
def folder(tmp_path):
    """A data set in which every image holds one disc and, on half of them, a ring."""
    toy.write_data_set(tmp_path, objects=2)
    content = json.loads((tmp_path / 'all.json').read_text())
    content['annotations'] = [
        a for a in content['annotations'] if a['category_id'] == 1 or a['image_id'] % 2
    ]
    write(tmp_path / 'all.json', content)
    for image in content['images']:
        boxes = [
            a['bbox']
            for a in content['annotations']
            if a['image_id'] == image['id'] and a['category_id'] == 1
        ]
        TRUTH[image['file_name']] = [[x, y, x + w, y + h] for x, y, w, h in boxes]
    return tmp_path


def write(path, content):
    path.write_text(json.dumps(content))


def edited(folder, name, change):
    """A changed copy of the annotation file."""
    content = json.loads((folder / 'all.json').read_text())
    write(folder / name, change(content) or content)
    return name


def reorder(content):
    """Other order and other ids of the same categories."""
    content['categories'] = [dict(id=5, name='ring'), dict(id=7, name='disc')]
    for annotation in content['annotations']:
        annotation['category_id'] = {1: 7, 2: 5}[annotation['category_id']]


def rename(content):
    content['categories'][1]['name'] = 'wheel'


def drop(content):
    content['images'] = content['images'][:5]


def config(folder, request, **options):
    cfg = toy.in_process(folder, request.node.name, **options)
    cfg.train_cfg.update(max_epochs=4, val_interval=4)
    return cfg


def checkpoint(folder, classes, **meta):
    """Weights of the toy detector, of a training on these classes."""
    model = MODELS.build(
        dict(
            type='ToyDetector',
            data_preprocessor=dict(type='DetDataPreprocessor'),
            bbox_head=dict(num_classes=2, num_queries=10),
        )
    )
    meta = dict(meta, dataset_meta=dict(classes=classes)) if classes else meta
    path = folder / 'weights.pth'
    torch.save(dict(meta=meta, state_dict=model.state_dict()), path)
    return str(path)


def test_set(file, **options):
    return {
        'test_dataloader.dataset.ann_file': file,
        'test_evaluator.classwise': True,
        **options,
    }


test_set.__test__ = False


def evaluated(cfg, kind=DEIMRunner):
    cfg.model.type = 'FirstClassDetector'
    cfg.test_evaluator.ann_file = f'{cfg.test_dataloader.dataset.data_root}' + (
        cfg.test_dataloader.dataset.ann_file
    )
    return kind.from_cfg(cfg).test()


@pytest.mark.parametrize('runner', [DEIMRunner, Runner])
@pytest.mark.parametrize('given', [None, NAMES, NAMES[::-1]])
@pytest.mark.parametrize('change', [None, reorder])
@pytest.mark.parametrize('trained', [NAMES, NAMES[::-1]])
def test_labels_follow_the_checkpoint(folder, request, trained, change, given, runner):
    """The first score stands for the first class of the checkpoint, whatever the file's order."""
    file = 'all.json' if change is None else edited(folder, 'other.json', change)
    options = {} if given is None else {'test_dataloader.dataset.metainfo': dict(classes=given)}
    cfg = config(
        folder, request, load_from=checkpoint(folder, trained), **test_set(file), **options
    )
    figures = evaluated(cfg, runner)
    found = 'disc' if trained == NAMES else 'ring'
    # All boxes are those of discs. Called rings, one or two of them hit a ring.
    assert figures['coco/disc_precision'] == (1.0 if found == 'disc' else 0.0)
    assert figures['coco/ring_precision'] < 0.2


def test_metric_of_mmdet_is_replaced(folder, request):
    cfg = config(
        folder,
        request,
        load_from=checkpoint(folder, NAMES[::-1]),
        **test_set(edited(folder, 'other.json', reorder)),
    )
    cfg.test_evaluator.type = 'CocoMetric'
    assert evaluated(cfg)['coco/disc_precision'] == 0.0
    cfg = config(
        folder,
        request,
        load_from=checkpoint(folder, NAMES),
        **test_set('other.json'),
        experiment_name='second',
    )
    cfg.test_evaluator.type = 'CocoMetric'
    assert evaluated(cfg)['coco/disc_precision'] == 1.0


@pytest.mark.parametrize('metrics', [tuple, list])
@pytest.mark.parametrize('kind', ['CocoMetric', 'mmdet.CocoMetric', CocoMetric])
def test_metrics_of_mmdet_are_known_by_any_name(kind, metrics):
    given = dict(type=kind, ann_file='a.json')
    for part in (given, metrics([given])):
        evaluator = named_categories(dict(metrics=part) if part is not given else part)
        (found,) = evaluator.get('metrics', [evaluator])
        assert found == dict(given, type=CheckedCocoMetric)
    assert given['type'] is kind


def test_figures_that_a_metric_lacks_are_refused_before_the_evaluation(folder, request):
    """Also under the name of mmdet's metric, in whose place ours computes them."""
    cfg = config(folder, request)
    cfg.test_evaluator.update(type='CocoMetric', metric_items=['mAP_60'])
    with pytest.raises(ValueError, match=r"metric_items: there is no 'mAP_60'"):
        DEIMRunner.from_cfg(cfg).test()


@pytest.mark.parametrize('runner', [DEIMRunner, Runner])
def test_metric_of_mmdet_that_is_not_replaced_is_refused(folder, request, runner):
    """It would take labels for the classes in the order of its file."""
    cfg = config(folder, request)
    cfg.test_evaluator.type = 'CocoMetric'
    if runner is DEIMRunner:
        cfg.test_evaluator = [METRICS.build(cfg.test_evaluator)]
    with pytest.raises(ValueError, match=r"CocoMetric, which .*type='CheckedCocoMetric'"):
        runner.from_cfg(cfg).test()


@pytest.mark.parametrize('runner', [DEIMRunner, Runner])
def test_other_names_than_the_checkpoints_are_refused_with_both_lists(folder, request, runner):
    cfg = config(
        folder, request, load_from=checkpoint(folder, ('disc', 'wheel')), **test_set('all.json')
    )
    with pytest.raises(
        ValueError,
        match=r"(?s)test data set.*all\.json.*\['disc', 'ring'\].*"
        r"checkpoint \['disc', 'wheel'\].*'ring'.*'wheel'",
    ):
        evaluated(cfg, runner)


def test_advice_to_choose_among_the_categories_of_a_file_works(folder, request):
    def add(content):
        content['categories'].insert(0, dict(id=9, name='star'))

    file = edited(folder, 'other.json', add)
    weights = checkpoint(folder, NAMES)
    cfg = config(folder, request, load_from=weights, **test_set(file))
    with pytest.raises(ValueError, match=r'star.*metainfo=dict\(classes='):
        evaluated(cfg)
    cfg = config(folder, request, load_from=weights, experiment_name='advised', **test_set(file))
    cfg.test_dataloader.dataset.metainfo = dict(classes=NAMES)
    assert evaluated(cfg)['coco/disc_precision'] == 1.0


def test_checkpoint_without_names_is_evaluated_with_a_warning(folder, request):
    cfg = config(folder, request, load_from=checkpoint(folder, None), **test_set('all.json'))
    assert evaluated(cfg)['coco/disc_precision'] == 1.0
    log = ''.join(path.read_text() for path in (folder / 'work').glob('*/*.log'))
    assert (
        'no class names: its scores are taken for the classes in the order of the data set, '
        'disc, ring' in log
    )


def test_names_that_were_only_assumed_do_not_refuse(folder, request):
    weights = checkpoint(folder, ('person', 'bicycle'), assumed_classes=True)
    cfg = config(folder, request, load_from=weights, **test_set('all.json'))
    assert evaluated(cfg)['coco/disc_precision'] == 1.0


def test_validation_follows_the_training_set(folder, request):
    file = edited(folder, 'other.json', reorder)
    cfg = config(folder, request, **{'val_dataloader.dataset.ann_file': file})
    cfg.val_evaluator = [
        dict(type='CheckedCocoMetric', ann_file=f'{folder}/{file}', classwise=True),
        dict(type='CountingMetric'),
    ]
    cfg.model.type = 'FirstClassDetector'
    runner = DEIMRunner.from_cfg(cfg)
    runner.train()
    assert runner.val_dataloader.dataset.metainfo['classes'] == NAMES
    scalars = runner.message_hub.log_scalars
    assert scalars['val/coco/disc_precision'].current() == 1.0
    assert scalars['val/count/disc'].current() == 8
    assert scalars['val/count/ring'].current() == 4


def test_validation_of_other_names_is_refused_before_training(folder, request):
    file = edited(folder, 'other.json', rename)
    cfg = config(folder, request, **{'val_dataloader.dataset.ann_file': file})
    cfg.val_evaluator.ann_file = f'{folder}/{file}'
    with pytest.raises(ValueError, match=r"(?s)other\.json.*'wheel'.*training set.*all\.json"):
        DEIMRunner.from_cfg(cfg).train()


def test_resumed_training_follows_the_checkpoint(folder, request):
    DEIMRunner.from_cfg(config(folder, request)).train()
    edited(folder, 'all.json', reorder)
    runner = DEIMRunner.from_cfg(
        config(
            folder, request, experiment_name='resumed', resume=True, **{'train_cfg.max_epochs': 4}
        )
    )
    runner.train()
    assert runner.train_dataloader.dataset.metainfo['classes'] == NAMES
    content = json.loads((folder / 'all.json').read_text())
    content['categories'][0]['name'] = 'wheel'
    write(folder / 'all.json', content)
    cfg = config(folder, request, experiment_name='renamed', resume=True)
    with pytest.raises(
        ValueError, match=r"training data set.*'wheel'.*checkpoint \['disc', 'ring'"
    ):
        DEIMRunner.from_cfg(cfg).train()


def concatenated(part, *files):
    parts = [dict(copy.deepcopy(part), ann_file=file) for file in files]
    return dict(type='ConcatDataset', datasets=parts)


def test_files_of_one_concatenated_set_may_have_different_orders(folder, request):
    file = edited(folder, 'other.json', reorder)
    cfg = config(folder, request)
    part = cfg.train_dataloader.dataset.dataset
    cfg.train_dataloader.dataset.dataset = concatenated(part, 'all.json', file)
    runner = DEIMRunner.from_cfg(cfg)
    runner.train()
    dataset = runner.train_dataloader.dataset
    assert dataset.metainfo['classes'] == NAMES
    first, second = (dataset.dataset.get_data_info(i)['instances'] for i in (1, 9))
    assert [i['bbox_label'] for i in first] == [i['bbox_label'] for i in second]
    assert {i['bbox_label'] for i in first} == {0, 1}


def test_concatenated_set_of_different_orders_takes_over_rows_by_name(folder, request):
    """Also where no AgreementHook has made its parts alike: mmdet keeps a list of class names."""
    part = config(folder, request).train_dataloader.dataset.dataset
    files = 'all.json', edited(folder, 'other.json', reorder)
    dataset = DATASETS.build(concatenated(part, *files))
    assert isinstance(dataset.metainfo, list)
    score = nn.Linear(1, 2)
    model = nn.ModuleDict(
        dict(bbox_head=nn.ModuleDict(dict(query_selection=nn.ModuleDict(dict(score=score)))))
    )
    saved = {name: torch.arange(2.0).view_as(value) for name, value in model.state_dict().items()}
    loop = SimpleNamespace(run=None)
    runner = SimpleNamespace(model=model, _resume=False, _train_loop=loop, logger=mock.Mock())
    runner._val_loop = runner._test_loop = None
    runner.train_dataloader = SimpleNamespace(dataset=dataset)
    loaded = dict(state_dict=saved, meta=dict(dataset_meta=dict(classes=NAMES[::-1])))
    CheckpointCheckHook().after_load_checkpoint(runner, loaded)
    assert saved['bbox_head.query_selection.score.bias'].tolist() == [1, 0]


@pytest.mark.parametrize('split', ['val', 'test'])
def test_data_set_of_mmdet_in_another_order_is_refused(folder, request, split):
    """CocoDataset numbers classes by the file, whatever order they are given in."""
    cfg = config(folder, request)
    dataset = cfg[f'{split}_dataloader'].dataset
    dataset.update(type='CocoDataset', metainfo=dict(classes=NAMES[::-1]))
    with pytest.raises(
        ValueError,
        match=r"order of the file, \['disc', 'ring'\].*given as "
        r"\['ring', 'disc'\].*CheckedCocoDataset",
    ):
        getattr(DEIMRunner.from_cfg(cfg), split)()
    cfg = config(folder, request, experiment_name='advised')
    cfg[f'{split}_dataloader'].dataset.metainfo = dict(classes=NAMES[::-1])
    # It asks for the epoch, for which mmengine builds the training loop.
    cfg.custom_hooks = [hook for hook in cfg.custom_hooks if hook.type != 'ScriptHook']
    getattr(DEIMRunner.from_cfg(cfg), split)()


def other_size(content):
    content['images'][2]['width'] = 65


def other_name(content):
    content['images'][2]['file_name'] = '99.png'


def other_ids(content):
    for image in content['images']:
        image['id'] += 100
    for annotation in content['annotations']:
        annotation['image_id'] += 100


@pytest.mark.parametrize('split', ['val', 'test'])
@pytest.mark.parametrize('change', [drop, other_size, other_name, other_ids, rename])
@pytest.mark.parametrize('runner', [DEIMRunner, Runner])
def test_evaluator_of_another_set_is_refused(folder, request, change, split, runner):
    file = edited(folder, 'other.json', change)
    for name, key in (('evaluator', f'{split}_evaluator'), ('set', f'{split}_dataloader')):
        cfg = config(folder, request, experiment_name=name)
        if name == 'evaluator':
            cfg[key].ann_file = f'{folder}/{file}'
        else:
            cfg[key].dataset.ann_file = file
        words = 'wheel' if change is rename else rf'all\.json.*{split}_evaluator\.ann_file'
        with pytest.raises(ValueError, match=words) as error:
            getattr(runner.from_cfg(cfg), split)()
        assert 'other.json' in str(error.value)


def test_a_metric_without_a_file_needs_the_objects_in_the_samples(folder, request):
    """mmdet says so after the first batch, that is, after the first epoch of a training."""
    cfg = config(folder, request)
    cfg.model.type = 'FirstClassDetector'
    expected = DEIMRunner.from_cfg(cfg).test()
    assert expected['coco/bbox_mAP'] > 0
    cfg.experiment_name += ' without a file'
    cfg.test_evaluator.ann_file = None
    message = 'the test evaluator has no ann_file, .* PackDet.* add "instances" to its meta_keys'
    with pytest.raises(ValueError, match=message):
        DEIMRunner.from_cfg(cfg).test()
    pack = cfg.test_dataloader.dataset.pipeline[-1]
    pack.meta_keys = (*pack.meta_keys, 'instances')
    cfg.experiment_name += ' with objects'
    assert DEIMRunner.from_cfg(cfg).test() == expected


def test_every_one_of_several_evaluators_is_looked_at(folder, request):
    cfg = config(folder, request)
    good = cfg.test_evaluator
    bad = dict(good, ann_file=f'{folder}/{edited(folder, "other.json", drop)}', prefix='second')
    cfg.test_evaluator = [good, bad]
    with pytest.raises(ValueError, match=r'all\.json.*other\.json'):
        DEIMRunner.from_cfg(cfg).test()


def test_concatenated_sets_need_an_evaluator_of_both(folder, request):
    def second(content):
        other_ids(content)
        reorder(content)

    edited(folder, 'second.json', second)
    both = json.loads((folder / 'all.json').read_text())
    more = json.loads((folder / 'second.json').read_text())
    for annotation in more['annotations']:
        annotation['category_id'] = {7: 1, 5: 2}[annotation['category_id']]
        annotation['id'] += 1000
    both['images'] += more['images']
    both['annotations'] += more['annotations']
    write(folder / 'both.json', both)

    cfg = config(folder, request)
    cfg.model.type = 'FirstClassDetector'
    cfg.test_dataloader.dataset = concatenated(
        cfg.test_dataloader.dataset, 'all.json', 'second.json'
    )
    with pytest.raises(ValueError, match=r'8 of the 16 images of the data set are not in'):
        DEIMRunner.from_cfg(cfg).test()
    cfg.experiment_name = 'both'
    cfg.test_evaluator.update(ann_file=f'{folder}/both.json', classwise=True)
    assert DEIMRunner.from_cfg(cfg).test()['coco/disc_precision'] == 1.0
    cfg.experiment_name = 'each'
    cfg.test_evaluator = dict(
        type='MultiDatasetsEvaluator',
        metrics=[
            dict(type='CocoMetric', ann_file=f'{folder}/{file}', classwise=True)
            for file in ('all.json', 'second.json')
        ],
        dataset_prefixes=['first', 'second'],
    )
    figures = DEIMRunner.from_cfg(cfg).test()
    assert figures['first/coco/disc_precision'] == figures['second/coco/disc_precision'] == 1.0


def test_repeated_images_are_refused_in_evaluation(folder, request):
    cfg = config(folder, request)
    cfg.test_dataloader.dataset = dict(
        type='RepeatDataset', times=2, dataset=cfg.test_dataloader.dataset
    )
    with pytest.raises(ValueError, match='ids 0, 1, 2, 3, 4 and 3 more more than once'):
        DEIMRunner.from_cfg(cfg).test()


def test_fine_tuning_on_another_order_takes_over_rows_by_name(folder, request):
    """The model's own order is that of the new training set."""
    weights = checkpoint(folder, NAMES)
    shutil.copy(folder / 'all.json', folder / 'first.json')
    edited(folder, 'all.json', reorder)
    runner = DEIMRunner.from_cfg(config(folder, request, load_from=weights))
    runner.train()
    assert runner.train_dataloader.dataset.metainfo['classes'] == NAMES[::-1]
    assert runner.val_dataloader.dataset.metainfo['classes'] == NAMES[::-1]
    saved = read_checkpoint(folder / 'work' / 'epoch_4.pth')
    assert saved['meta']['dataset_meta']['classes'] == NAMES[::-1]
    cfg = config(folder, request, experiment_name='tested', **test_set('first.json'))
    cfg.load_from = str(folder / 'work' / 'epoch_4.pth')
    assert evaluated(cfg)['coco/disc_precision'] == 0.0


def test_config_is_left_as_it_is(folder, request):
    cfg = config(folder, request, load_from=checkpoint(folder, NAMES))
    before = Config(copy.deepcopy(cfg._cfg_dict)).pretty_text
    DEIMRunner.from_cfg(cfg).test()
    assert cfg.pretty_text == before
