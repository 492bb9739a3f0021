"""A detector that trains in milliseconds and a data set of a few painted images.

The tools import this module by ``custom_imports`` from test configs; it stands in for a network
where a test is about the training around it.
"""

import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import cv2
import numpy as np
import torch
from mmdet.models import BaseDetector
from mmdet.registry import HOOKS, METRICS, MODELS
from mmengine.config import Config
from mmengine.dist import all_gather_object
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.structures import InstanceData
from processes import run_script
from starting import quick_environment
from torch import nn

ROOT = Path(__file__).parents[2]
SIDE = 64


class ToyHead(nn.Module):
    def __init__(self, num_classes, num_queries):
        super().__init__()
        self.num_classes = num_classes
        self.num_queries = num_queries
        self.cls = nn.Linear(4, num_classes)


@MODELS.register_module()
class ToyDetector(BaseDetector):
    """Predicts the same box everywhere; its loss depends on images, objects and parameters."""

    def __init__(self, data_preprocessor, bbox_head, bad_image=None):
        super().__init__(data_preprocessor)
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 3, stride=4), nn.BatchNorm2d(4), nn.ReLU())
        self.bbox_head = ToyHead(**bbox_head)
        self.bad_image = bad_image

    def extract_feat(self, inputs):
        return self.backbone(inputs).mean(dim=(2, 3))

    def loss(self, inputs, data_samples):
        scores = self.bbox_head.cls(self.extract_feat(inputs))
        counts = scores.new_tensor([len(sample.gt_instances) for sample in data_samples])
        loss_cls = (scores.mean(dim=1) - counts).abs().mean()
        if self.bad_image and any(self.bad_image in s.img_path for s in data_samples):
            loss_cls = loss_cls * float('nan')
        return dict(loss_cls=loss_cls, loss_scale=scores.square().mean())

    def predict(self, inputs, data_samples, rescale=True):
        for sample in data_samples:
            sample.pred_instances = InstanceData(
                bboxes=inputs.new_tensor([[8.0, 8.0, 40.0, 40.0]]),
                scores=inputs.new_tensor([0.9]),
                labels=torch.zeros(1, dtype=torch.long),
            )
        return data_samples

    def _forward(self, inputs, data_samples=None):
        return self.extract_feat(inputs)


@METRICS.register_module()
class ScriptedMetric(BaseMetric):
    """In place of an AP the number that the script holds for the epoch."""

    default_prefix = 'coco'

    def __init__(self, scores):
        super().__init__()
        self.scores = scores
        self.epoch = 0

    def process(self, data_batch, data_samples):
        self.results.append(len(data_samples))

    def compute_metrics(self, results):
        return dict(bbox_mAP=self.scores[self.epoch - 1])


@HOOKS.register_module()
class ScriptHook(Hook):
    """Tells ``ScriptedMetric`` the number of finished epochs."""

    def before_val_epoch(self, runner):
        runner.val_loop.evaluator.metrics[0].epoch = runner.epoch


@HOOKS.register_module()
class SameOnAllRanksHook(Hook):
    """Compares what the ranks begin each epoch with, bit for bit, but for statistics of BN."""

    priority = 'LOWEST'

    def before_train_epoch(self, runner):
        ema = next(hook.ema_model for hook in runner.hooks if hasattr(hook, 'ema_model'))
        moments = runner.optim_wrapper.state_dict()['state']
        tensors = [
            *runner.model.parameters(),
            *ema.parameters(),
            ema.steps,
            *(value for state in moments.values() for value in state.values()),
        ]
        digest = hashlib.sha256(str(ema.decay).encode())
        for tensor in tensors:
            digest.update(tensor.detach().numpy().tobytes())
        assert len(set(all_gather_object(digest.hexdigest()))) == 1


@HOOKS.register_module()
class KillHook(Hook):
    """Kills the process as the operating system would, in the middle of an epoch.

    ``KILL_AT`` is ``epoch,batch`` (both from 0), or ``epoch,val`` for the evaluation after an
    epoch.
    """

    priority = 'LOWEST'

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self._kill_at(f'{runner.epoch},{batch_idx}')

    def after_val_epoch(self, runner, metrics=None):
        self._kill_at(f'{runner.epoch - 1},val')

    def _kill_at(self, moment):
        if os.environ.get('KILL_AT') == moment:
            os.kill(os.getpid(), signal.SIGKILL)


def write_data_set(folder: Path, images: int = 8, objects: int = 2) -> None:
    """``images`` noise images with ``objects`` rectangles each, and ``all.json`` for them."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    annotations = []
    for image in range(images):
        pixels = random.integers(0, 255, (SIDE, SIDE, 3), dtype=np.uint8)
        cv2.imwrite(str(folder / f'{image}.png'), pixels)
        for _ in range(objects):
            x, y = random.integers(0, SIDE // 2, 2).tolist()
            annotations.append(
                dict(
                    id=len(annotations) + 1,
                    image_id=image,
                    category_id=1 + len(annotations) % 2,
                    bbox=[x, y, 24, 24],
                    area=576,
                    iscrowd=0,
                )
            )
    (folder / 'all.json').write_text(
        json.dumps(
            dict(
                images=[
                    dict(id=i, file_name=f'{i}.png', width=SIDE, height=SIDE) for i in range(images)
                ],
                annotations=annotations,
                categories=[dict(id=1, name='disc'), dict(id=2, name='ring')],
            )
        )
    )


def write_config(folder: Path, **changes) -> Path:
    """A config of the toy detector over our own base files, for the data set in ``folder``.

    ``changes`` are ``--cfg-options``-like settings that replace those of the file.
    """
    base = ROOT / 'configs' / '_base_'
    data = f"dict(data_root='{folder}/', ann_file='all.json', data_prefix=dict(img=''))"
    text = f"""
_base_ = ['{base}/datasets/coco_detection.py', '{base}/schedules/deim.py',
          '{base}/default_runtime.py']
custom_imports = dict(imports=['toy', 'deim_mmdet'])
model = dict(
    type='ToyDetector',
    data_preprocessor=dict(
        type='DetDataPreprocessor', mean=[0, 0, 0], std=[255, 255, 255], bgr_to_rgb=True,
        batch_augments=[
            dict(type='DenseO2OMixUp'), dict(type='DenseO2OMultiScale', base_size={SIDE})]),
    bbox_head=dict(num_classes=2, num_queries=10))
train_dataloader = dict(batch_size=2, num_workers=1, dataset=dict(dataset={data}))
val_dataloader = dict(num_workers=0, persistent_workers=False, dataset={data})
test_dataloader = val_dataloader
val_evaluator = dict(ann_file='{folder}/all.json')
test_evaluator = val_evaluator
recipe = dict(epochs=8, stages=(2, 4, 6), warmup_iters=6, ema_decay=0.9, ema_warmup_iters=5,
              ema_restart_decay=0.8, train_images=8)
auto_scale_lr = dict(base_batch_size=2)
train_cfg = dict(max_epochs=8, val_interval=4)
optim_wrapper = dict(paramwise_cfg=dict(rules=[dict(kind='norm', decay_mult=0.0)]))
custom_hooks = [
    dict(type='DerivedSeedHook'), dict(type='DenseO2OScheduleHook'),
    dict(type='ExpWarmupEMAHook'), dict(type='EMARestartHook'),
    dict(type='NonFiniteLossHook'), dict(type='CheckpointCheckHook'),
    dict(type='AgreementHook'), dict(type='KillHook'), dict(type='ScriptHook'),
    dict(type='SameOnAllRanksHook')]
default_hooks = dict(logger=dict(interval=1))
randomness = dict(seed=0)
for part in (_base_.train_dataloader.dataset, _base_.val_dataloader.dataset,
             _base_.test_dataloader.dataset):
    for transform in part.pipeline:
        if transform.type == 'Resize':
            transform.scale = ({SIDE}, {SIDE})
del part, transform
"""
    path = folder / 'toy_config.py'
    path.write_text(text)
    if changes:
        cfg = Config.fromfile(path, import_custom_modules=False)
        cfg.merge_from_dict(changes)
        path = folder / 'changed_config.py'
        cfg.dump(path)
    return path


def in_process(folder: Path, name: str, **changes) -> Config:
    """The config for a training in this process: without workers, of a name of its own."""
    cfg = Config.fromfile(write_config(folder), import_custom_modules=False)
    cfg.merge_from_dict(
        {
            'work_dir': str(folder / 'work'),
            'launcher': 'none',
            'experiment_name': name,
            'train_dataloader.num_workers': 0,
            'train_dataloader.persistent_workers': False,
            **changes,
        }
    )
    return cfg


def scripted(scores: list[float]) -> dict:
    """Changes of the config for an epoch per score, each evaluated as the script says.

    The stages begin with epochs 1, 3, 5 and 7. All checkpoints are kept.
    """
    return {
        'recipe.epochs': len(scores),
        'train_cfg.max_epochs': len(scores),
        'train_cfg.val_interval': 1,
        'default_hooks.checkpoint.max_keep_ckpts': -1,
        'val_evaluator': dict(_delete_=True, type='ScriptedMetric', scores=scores),
    }


def environment() -> dict[str, str]:
    """Of a process that imports this module and the package beside it, on one core."""
    return quick_environment(Path(__file__).parent, ROOT)


def run_tool(*arguments, kill_at=None, expect=0, launcher=()):
    """Run a script of the repository with the toy module importable; returns its output."""
    env = environment()
    if kill_at is not None:
        env['KILL_AT'] = kill_at
    folder = arguments[1].parent
    if launcher:
        done = subprocess.run(
            [sys.executable, *launcher, *map(str, arguments)],
            env=env,
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=900,
        )
        status, output = done.returncode, done.stdout + done.stderr
    else:
        with tempfile.TemporaryDirectory() as scratch:
            out = Path(scratch) / 'output'
            status = run_script(*arguments, environment=env, folder=folder, out=out)
            output = out.read_text()
    assert status == expect, output[-5000:]
    return output


def two_processes() -> tuple[str, ...]:
    """Launcher of two processes, for ``run_tool``."""
    port = 20000 + os.getpid() % 10000
    return '-m', 'torch.distributed.run', '--nproc_per_node=2', f'--master_port={port}'


def train(config, *arguments, **kwargs):
    return run_tool(ROOT / 'tools' / 'train.py', config, *arguments, **kwargs)
