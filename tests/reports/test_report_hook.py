"""Reports of tests and trainings: by the toy detector, by one of mmdet's, and by the tools."""

import json
import re
import runpy
import shutil
import sys
from pathlib import Path

from deim_mmdet.engine import DEIMRunner
from deim_mmdet.evaluation import CheckedCocoMetric
from deim_mmdet.reports import ReportHook
from deim_mmdet.reports.collector import find_metric
from deim_mmdet.reports.counts import count_training
from deim_mmdet.reports.report import check_folder

import mmdet
import pytest
import scene
import torch
from mmdet.evaluation import CocoMetric, VOCMetric
from mmengine.config import Config
from mmengine.evaluator import Evaluator
from mmengine.runner import Runner

sys.path.append(str(Path(__file__).parents[1] / 'engine'))
import toy

CONDITIONAL_DETR = 'conditional_detr/conditional-detr_r50_8xb2-50e_coco.py'


def read(folder):
    assert (folder / 'report.html').stat().st_size > 10_000
    return json.loads((folder / 'report.json').read_text())


def detr_config(folder):
    """mmdet's Conditional DETR, with few layers and channels, on the toy's data set."""
    cfg = Config.fromfile(Path(mmdet.__file__).parent / '.mim/configs' / CONDITIONAL_DETR)
    cfg.model.backbone.update(depth=18, base_channels=16, init_cfg=None)
    cfg.model.neck.in_channels = [128]
    cfg.model.num_queries, cfg.model.bbox_head.num_classes = 30, 2
    cfg.model.test_cfg.max_per_img = 30
    cfg.model.encoder.num_layers, cfg.model.decoder.num_layers = 1, 2
    cfg.test_dataloader.update(num_workers=0, persistent_workers=False)
    dataset = cfg.test_dataloader.dataset
    dataset.update(
        data_root=f'{folder}/',
        ann_file='all.json',
        data_prefix=dict(img=''),
        metainfo=dict(classes=('disc', 'ring')),
    )
    for transform in dataset.pipeline:
        if transform.type == 'Resize':
            transform.scale = (128, 96)
    cfg.test_evaluator = dict(type='CocoMetric', ann_file=f'{folder}/all.json', metric='bbox')
    for part in ('train', 'val'):
        for kind in ('dataloader', 'cfg', 'evaluator'):
            cfg.pop(f'{part}_{kind}', None)
    cfg.update(work_dir=str(folder / 'work'), optim_wrapper=None, param_scheduler=None)
    cfg.pop('auto_scale_lr', None)
    return cfg


@pytest.mark.slow
def test_a_detector_of_mmdets_by_its_own_runner_and_metric(tmp_path):
    toy.write_data_set(tmp_path)
    cfg = detr_config(tmp_path)
    cfg.experiment_name = 'report_of_detr'
    torch.manual_seed(0)
    runner = Runner.from_cfg(cfg)
    runner.register_hook(ReportHook(tmp_path / 'report'))
    figures = runner.test()
    assert type(runner.test_evaluator.metrics[0]) is CocoMetric
    content = read(tmp_path / 'report')
    assert content['figures']['AP'] == pytest.approx(figures['coco/bbox_mAP'], abs=5e-4)
    assert content['figures']['AP50'] == pytest.approx(figures['coco/bbox_mAP_50'], abs=5e-4)
    assert content['detections'] == 8 * 30
    assert content['training']['note'] == 'the config has no training set'
    # 64 pixels become 96, and 24 so 36.
    assert content['input'] == '96×96'
    assert [row['objects'] for row in content['input_sizes']] == [0, 0, 0, 16, 0, 0]


@pytest.mark.slow
def test_both_tools_report_the_same_on_the_last_weights(tmp_path):
    toy.write_data_set(tmp_path)
    config = toy.write_config(tmp_path, **{'train_cfg.max_epochs': 4, 'train_cfg.val_interval': 2})
    output = toy.train(config, '--work-dir', tmp_path / 'work', '--report', tmp_path / 'trained')
    trained = read(tmp_path / 'trained')
    assert trained['about']['weights'] == 'after epoch 4 (iteration 16)'
    assert (trained['images'], trained['objects'], trained['detections']) == (8, 16, 8)
    logged = re.findall(r'coco/bbox_mAP: ([\d.]+)', output)
    assert len(logged) == 2
    assert trained['figures']['AP'] == pytest.approx(float(logged[-1]), abs=5e-4)
    # Both sets are one file here, in which each class has eight objects.
    for entry in trained['classes']:
        assert entry['train'] == entry['val'] == dict(all=8, small=8, medium=0, large=0)
    assert trained['input'] == '64×64'
    assert [row['objects'] for row in trained['input_sizes']] == [0, 0, 16, 0, 0, 0]

    # The kept config has no report in it: it can be tested by itself.
    (kept,) = (tmp_path / 'work').glob('*.py')
    arguments = (kept, tmp_path / 'work' / 'epoch_4.pth', '--report', tmp_path / 'tested')
    assert 'Report: ' in toy.run_tool(toy.ROOT / 'tools' / 'test.py', *arguments)
    tested = read(tmp_path / 'tested')
    assert tested['about']['weights'].endswith('epoch_4.pth')
    for part in ('figures', 'classes', 'curve', 'confusion', 'stands_out'):
        assert tested[part] == trained[part]


@pytest.mark.parametrize('arguments', [['test.py', 'x.py', __file__], ['train.py', 'x.py']])
def test_tools_refuse_a_folder_before_anything_else(tmp_path, monkeypatch, capsys, arguments):
    (tmp_path / 'report.html').write_text('')
    monkeypatch.setattr(sys, 'argv', [*arguments, '--report', str(tmp_path)])
    with pytest.raises(SystemExit):
        runpy.run_path(str(toy.ROOT / 'tools' / arguments[0]), run_name='__main__')
    said = capsys.readouterr().err.splitlines()[-1]
    assert 'error: --report: a report needs a new or empty folder' in said
    assert 'holds report.html' in said


def test_a_folder_that_is_taken_or_none_is_refused(tmp_path):
    assert check_folder(tmp_path / 'new' / 'folder').is_dir()
    (tmp_path / 'file').write_text('')
    with pytest.raises(ValueError, match=r'cannot be written to .*file'):
        check_folder(tmp_path / 'file')
    with pytest.raises(ValueError, match=r'holds (file|new): name another'):
        check_folder(tmp_path)


def annotation_file(folder, objects=scene.OBJECTS):
    path = folder / 'all.json'
    path.write_text(json.dumps(scene.coco(objects).dataset))
    return str(path)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(metric='proposal'), r"metric=\['proposal'\]"),
        (dict(format_only=True, outfile_prefix='x'), 'format_only=True'),
    ],
)
@pytest.mark.parametrize('kind', [CocoMetric, CheckedCocoMetric])
def test_other_uses_of_the_metric_are_refused(tmp_path, kind, options, message):
    metric = kind(ann_file=annotation_file(tmp_path), **options)
    with pytest.raises(ValueError, match=message):
        find_metric(Evaluator(metric))


def test_other_metrics_and_files_without_objects_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r'needs the boxes of a CocoMetric.*has VOCMetric'):
        find_metric(Evaluator(VOCMetric()))
    path = annotation_file(tmp_path, [])
    with pytest.raises(ValueError, match=r'all\.json has none'):
        find_metric(Evaluator(CheckedCocoMetric(path)))


def test_a_run_ends_before_its_first_image(tmp_path):
    toy.write_data_set(tmp_path)
    cfg = toy.in_process(tmp_path, 'report_refused', **toy.scripted([0.1] * 8))
    runner = DEIMRunner.from_cfg(cfg)
    runner.register_hook(ReportHook(tmp_path / 'report'))
    with pytest.raises(ValueError, match='the evaluator has ScriptedMetric'):
        runner.train()
    assert runner.iter == 0


def training_config(*parts):
    return Config(dict(train_dataloader=dict(dataset=dict(type='ConcatDataset', datasets=parts))))


def test_training_objects_are_those_of_all_files(tmp_path):
    path = annotation_file(tmp_path)
    part = dict(type='CocoDataset', ann_file=path, metainfo=dict(classes=('cat', 'dog')))
    again = dict(type='RepeatDataset', times=5, dataset=part)
    counts = count_training(training_config(part, again))
    assert (counts.files, counts.images) == ([path, path], 6)
    assert counts.of(['cat']) == dict(all=8, small=2, medium=6, large=0)
    assert counts.of(['hen']) == dict(all=0, small=0, medium=0, large=0)
    voc = dict(type='VOCDataset', ann_file='x.txt')
    assert "isn't in COCO's format (VOCDataset)" in count_training(training_config(voc)).note
    shutil.move(path, f'{path}.away')
    assert 'all.json' in count_training(training_config(part)).note
