"""Trainings of the smallest models themselves, at a size that a CPU can bear."""

import argparse
import json
import math
import shutil

from deim_mmdet.engine import DEIMRunner
from deim_mmdet.engine.config import load_config, override_length

import pytest
import toy
from mmengine.config import DictAction
from states import differences, state_of
from toy import train

pytestmark = pytest.mark.slow

MODEL = toy.ROOT / 'configs' / 'deim_dfine_n.py'
SMALL = (
    'image_size=64',
    'model.backbone.init_cfg=None',
    'train_dataloader.num_workers=0',
    'train_dataloader.persistent_workers=False',
    'val_dataloader.num_workers=0',
    'val_dataloader.persistent_workers=False',
    'default_hooks.logger.interval=1',
)


def data_options(folder):
    """Options that put the painted data set of a folder in place of COCO."""
    return (
        'model.bbox_head.num_classes=2',
        f'data_root={folder}',
        'train_dataloader.dataset.dataset.ann_file=all.json',
        'train_dataloader.dataset.dataset.data_prefix.img=',
        'val_dataloader.dataset.ann_file=all.json',
        'val_dataloader.dataset.data_prefix.img=',
        f'val_evaluator.ann_file={folder}/all.json',
    )


def losses(work_dir):
    """Logged entries of training, one per iteration."""
    (file,) = work_dir.glob('*/vis_data/scalars.json')
    entries = [json.loads(line) for line in file.read_text().splitlines()]
    return [entry for entry in entries if 'loss' in entry]


@pytest.mark.parametrize(
    ('model', 'terms'),
    [
        ('deim_dfine_n', {'loss_cls', 'loss_fgl', 'd0.loss_ddf', 'dn.loss_iou'}),
        ('deim_rtdetrv2_r18', {'loss_cls', 'enc.loss_bbox', 'd0.loss_iou', 'dn.loss_iou'}),
    ],
)
def test_mixed_precision_stays_finite(model, terms, tmp_path):
    toy.write_data_set(tmp_path, images=2)
    work_dir = tmp_path / 'work'
    log = train(
        toy.ROOT / 'configs' / f'{model}.py',
        *('--amp', '--work-dir', work_dir, '--cfg-options', *SMALL, *data_options(tmp_path)),
        *('train_dataloader.batch_size=2', 'train_cfg.max_epochs=4', 'train_cfg.val_interval=4'),
    )
    assert 'Mixed precision in bfloat16' in log
    entries = losses(work_dir)
    assert len(entries) == 4
    for entry in entries:
        assert all(math.isfinite(value) for value in entry.values()), entry
        assert terms < entry.keys()


@pytest.mark.parametrize('model', ['deimv2_pico', 'deimv2_s', 'ecdet_s'])
def test_successors_train_through_all_stages(model, tmp_path):
    toy.write_data_set(tmp_path, images=4)
    work_dir = tmp_path / 'work'
    log = train(
        toy.ROOT / 'configs' / f'{model}.py',
        *('--work-dir', work_dir, '--cfg-options', *SMALL, *data_options(tmp_path)),
        *('train_dataloader.batch_size=2', 'train_cfg.max_epochs=4', 'train_cfg.val_interval=2'),
    )
    entries = losses(work_dir)
    assert len(entries) == 8
    assert all(math.isfinite(value) for entry in entries for value in entry.values())
    assert ('ScoreOverlapMatcher matches from here on' in log) == model.startswith('deimv2')
    assert (work_dir / 'epoch_4.pth').exists()


def test_two_processes_with_images_without_objects(tmp_path):
    """Batches of one image, one in three without objects: ranks differ in what they compute."""
    toy.write_data_set(tmp_path, images=6)
    path = tmp_path / 'all.json'
    content = json.loads(path.read_text())
    content['annotations'] = [a for a in content['annotations'] if a['image_id'] % 3]
    path.write_text(json.dumps(content))
    work_dir = tmp_path / 'work'
    train(
        MODEL,
        *('--launcher', 'pytorch', '--work-dir', work_dir),
        *('--cfg-options', *SMALL, *data_options(tmp_path)),
        *('train_dataloader.batch_size=1', 'train_cfg.max_epochs=4', 'train_cfg.val_interval=4'),
        launcher=toy.two_processes(),
    )
    assert len(losses(work_dir)) == 12
    assert (work_dir / 'epoch_4.pth').exists()


def test_resumed_at_each_epoch_it_ends_bit_for_bit_the_same(tmp_path):
    """All that draws takes part: mosaic, mixup, sizes, crops, denoising; and so does a restart."""
    toy.write_data_set(tmp_path, images=6)
    parser = argparse.ArgumentParser()
    parser.add_argument('options', nargs='+', action=DictAction)
    options = parser.parse_args([*SMALL, *data_options(tmp_path)]).options

    def run(name, interval, load_from=None):
        cfg = load_config(str(MODEL), options)
        override_length(cfg, epochs=4, batch_size=2)
        cfg.model.data_preprocessor.batch_augments.append(
            dict(type='DenseO2OMultiScale', base_size=64)
        )
        cfg.merge_from_dict(
            dict(
                work_dir=str(tmp_path / name),
                experiment_name=f'real_{name}',
                resume=load_from is not None,
                load_from=load_from,
                launcher='none',
                randomness=dict(seed=3),
                **{
                    'default_hooks.checkpoint.interval': interval,
                    'default_hooks.checkpoint.max_keep_ckpts': -1,
                },
            )
        )
        DEIMRunner.from_cfg(cfg).train()
        return state_of(tmp_path / name / 'epoch_4.pth')

    whole = run('whole', interval=1)
    assert whole['info']['ema_restart']['epoch'] == 1
    for epoch in (1, 2, 3):
        folder = tmp_path / f'from_{epoch}'
        folder.mkdir()
        shutil.copy(tmp_path / 'whole' / 'best_augmented.pth', folder)
        checkpoint = tmp_path / 'whole' / f'epoch_{epoch}.pth'
        resumed = run(folder.name, interval=4, load_from=str(checkpoint))
        assert not differences(whole, resumed)
        shutil.rmtree(folder)


def test_crowdhuman(tmp_path):
    """mmdet's CrowdHuman data set and metric, with a smaller network in place of L."""
    toy.write_data_set(tmp_path / 'Images', images=4)
    persons = [
        dict(tag=tag, fbox=box, vbox=box, hbox=[*box[:2], 8, 8], extra=extra, head_attr={})
        for tag, box, extra in (
            ('person', [4, 4, 20, 50], {}),
            ('person', [14, 4, 20, 50], {}),
            ('mask', [40, 4, 20, 50], dict(ignore=1)),
        )
    ]
    lines = [json.dumps(dict(ID=str(image), gtboxes=persons)) for image in range(4)]
    for split in ('train', 'val'):
        (tmp_path / f'annotation_{split}.odgt').write_text('\n'.join(lines) + '\n')
    for png in (tmp_path / 'Images').glob('*.png'):
        png.rename(png.with_suffix('.jpg'))
    work_dir = tmp_path / 'work'
    log = train(
        toy.ROOT / 'configs' / 'deim_dfine_l_crowdhuman.py',
        *('--work-dir', work_dir, '--cfg-options', *SMALL, f'data_root={tmp_path}'),
        *('model.backbone.arch=B0', 'model.neck.in_channels=256,512,1024'),
        *('model.bbox_head.decoder.num_layers=2', 'train_dataloader.batch_size=2'),
        *('train_cfg.max_epochs=4', 'train_cfg.val_interval=4'),
    )
    assert 'crowd_human/mMR' in log
    assert list(work_dir.glob('best_crowd_human_mAP_epoch_4.pth'))


def test_bccd(shared_dir, tmp_path):
    data = shared_dir / 'data' / 'bccd'
    if not data.is_dir():
        pytest.skip(f'{data} is absent')
    log = train(
        toy.ROOT / 'configs' / 'deim_dfine_n_bccd.py',
        *('--work-dir', tmp_path, '--cfg-options', *SMALL, f'data_root={data}'),
        *('train_dataloader.batch_size=16', 'train_cfg.max_epochs=4', 'train_cfg.val_interval=2'),
    )
    assert 'dropped 1 of 2805 boxes: 1 without area (BloodImage_00343.jpg)' in log
    assert log.count('bbox_mAP_copypaste') == 2
    entries = losses(tmp_path)
    assert len(entries) == 4 * 12
    assert entries[-1]['loss'] < entries[0]['loss']
