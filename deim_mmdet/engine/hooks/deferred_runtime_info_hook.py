"""Reads losses from the device only when they are logged."""

import torch
from mmdet.registry import HOOKS
from mmengine.hooks import CheckpointHook, LoggerHook, RuntimeInfoHook

from ...models.detectors import LossLog
from ...utils.host_reads import allowed_sync


@HOOKS.register_module()
class DeferredRuntimeInfoHook(RuntimeInfoHook):
    """mmengine's ``RuntimeInfoHook`` that lets the host run ahead of the device.

    mmengine reads every loss term after every iteration, and the host waits until the device has
    computed the term. Here the losses of :class:`~deim_mmdet.models.DEIMDetector` stay on the
    device until they are logged or saved, or an epoch ends. Then they are read at once. The
    averages in the log still cover every iteration.
    """

    def before_train(self, runner) -> None:
        super().before_train(runner)
        self._pending: list[LossLog] = []
        self._log_intervals = [h.interval for h in runner.hooks if isinstance(h, LoggerHook)]
        self._save_intervals = [
            h.interval for h in runner.hooks if isinstance(h, CheckpointHook) and not h.by_epoch
        ]

    def after_train_iter(self, runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        if not isinstance(outputs, LossLog):
            super().after_train_iter(runner, batch_idx, data_batch, outputs)
            return
        self._pending.append(outputs)
        if (
            self.end_of_epoch(runner.train_dataloader, batch_idx)
            or any(self.every_n_inner_iters(batch_idx, n) for n in self._log_intervals)
            or any(self.every_n_train_iters(runner, n) for n in self._save_intervals)
        ):
            self._read(runner)

    def _read(self, runner) -> None:
        """Give the losses of all iterations since the last call to the message hub."""
        with allowed_sync():
            numbers = iter(torch.cat([log.values_on_device for log in self._pending]).tolist())
        for log in self._pending:
            for name in log.names:
                runner.message_hub.update_scalar(f'train/{name}', next(numbers))
        self._pending.clear()
