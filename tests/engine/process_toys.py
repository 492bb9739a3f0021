"""What the configs of ``test_processes.py`` name beside ``toy``."""

import hashlib
import os
import signal

import torch
from mmdet.registry import HOOKS, MODELS
from mmengine.hooks import Hook
from mmengine.structures import InstanceData
from toy import ToyDetector


@HOOKS.register_module()
class RankFaultHook(Hook):
    """Ends one process in its second epoch: by SIGKILL ('kill') or an exception ('raise')."""

    priority = 'LOWEST'

    def __init__(self, rank, fault):
        self.rank = rank
        self.fault = fault

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.rank != self.rank or runner.epoch != 1:
            return
        if self.fault == 'kill':
            os.kill(os.getpid(), signal.SIGKILL)
        raise OSError('the disk of this machine is broken')


@HOOKS.register_module()
class RecordHook(Hook):
    """Records what each iteration is made of.

    Of each: the epoch, the images' numbers, a digest of each sample, and what the training process
    draws for the batch, as it shows in the height of the input and the number of objects.
    """

    def before_train(self, runner):
        self.records = []
        runner.model.module.register_forward_pre_hook(self._record_draws, with_kwargs=True)

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        numbers = [sample.img_id for sample in data_batch['data_samples']]
        digests = [hashlib.sha256(x.numpy().tobytes()).hexdigest() for x in data_batch['inputs']]
        self.records.append([runner.epoch, numbers, digests])

    def _record_draws(self, model, args, kwargs):
        if kwargs['mode'] == 'loss':
            objects = [len(sample.gt_instances) for sample in kwargs['data_samples']]
            self.records[-1].append((kwargs['inputs'].shape[2], sum(objects)))


@MODELS.register_module()
class KnowingDetector(ToyDetector):
    """Finds every object of images with an even number; elsewhere it sees something in a corner."""

    def predict(self, inputs, data_samples, rescale=True):
        for sample in data_samples:
            truth = sample.gt_instances
            good = sample.img_id % 2 == 0
            boxes = truth.bboxes if good else torch.tensor([[0.0, 0.0, 5.0, 5.0]])
            labels = truth.labels if good else torch.zeros(1, dtype=torch.int64)
            scores = torch.full((len(labels),), 0.9 - 0.1 * sample.img_id)
            sample.pred_instances = InstanceData(bboxes=boxes, labels=labels, scores=scores)
        return data_samples
