"""Checkpoints that a killed run cannot leave half written."""

import os
from pathlib import Path

from mmdet.registry import HOOKS
from mmengine.dist import is_main_process
from mmengine.hooks import CheckpointHook
from mmengine.runner import BaseLoop


def write_atomically(path: str | Path, text: str) -> None:
    """Replace the file at ``path`` by one that holds ``text``; readers see the old or the new."""
    path = Path(path)
    temporary = path.with_name(path.name + '.tmp')
    with open(temporary, 'w') as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


@HOOKS.register_module()
class AtomicCheckpointHook(CheckpointHook):
    """mmengine's ``CheckpointHook`` in an order that always leaves a checkpoint to resume from.

    The new checkpoint is written (atomically by ``DEIMRunner.save_checkpoint``), then the pointer
    ``last_checkpoint`` is replaced, and only then outdated checkpoints are removed. Likewise the
    previous best one goes after the new one is there.

    A checkpoint by epoch is written before the evaluation that follows, and once more after it,
    when every hook has seen its result. The message hub knows the last epoch that was evaluated, as
    ``validated_epoch``: a run that is resumed from a checkpoint whose evaluation was interrupted
    evaluates before it goes on.
    """

    _saved_epoch: int | None = None
    _best_changed = False

    def before_train(self, runner) -> None:
        super().before_train(runner)
        if not self.by_epoch:
            return
        hub = runner.message_hub
        # Without an entry nothing is known of earlier evaluations, or there were no epochs.
        validated = hub.get_info('validated_epoch', runner.epoch)
        hub.update_info('validated_epoch', validated)
        if validated < runner.epoch and self._is_validated(runner):
            runner.logger.info(
                f'Epoch {runner.epoch} was saved, but its evaluation interrupted: evaluating'
            )
            self._saved_epoch = runner.epoch
            runner.val_loop.run()

    def after_val_epoch(self, runner, metrics: dict[str, float] | None = None) -> None:
        # Runner.val evaluates without a training, and there is nothing to save.
        if not isinstance(runner._train_loop, BaseLoop):
            return
        if not self.by_epoch:
            super().after_val_epoch(runner, metrics)
            return
        # mmengine removes a previous best that it knows of before it writes the new one, and
        # writes the last checkpoint again before all hooks have seen the result.
        previous, self.best_ckpt_path = getattr(self, 'best_ckpt_path', None), None
        last, self.last_ckpt = self.last_ckpt, None
        super().after_val_epoch(runner, metrics)
        self.last_ckpt = last
        self._best_changed = self.best_ckpt_path is not None
        if not self._best_changed:
            self.best_ckpt_path = previous
        elif previous not in (None, self.best_ckpt_path) and is_main_process():
            self._remove(previous)

    def after_val(self, runner) -> None:
        if not self.by_epoch or not isinstance(runner._train_loop, BaseLoop):
            return
        runner.message_hub.update_info('validated_epoch', runner.epoch)
        if self._best_changed or self._saved_epoch == runner.epoch:
            meta = dict(epoch=runner.epoch, iter=runner.iter)
            self._save_checkpoint_with_step(runner, runner.epoch, meta)
        self._best_changed = False

    @staticmethod
    def _is_validated(runner) -> bool:
        """Whether the training loop evaluates after the epoch that it has reached."""
        loop = runner.train_loop
        return (
            runner.val_loop is not None
            and loop.epoch >= loop.val_begin
            and (loop.epoch % loop.val_interval == 0 or loop.epoch == loop.max_epochs)
        )

    def _save_checkpoint_with_step(self, runner, step: int, meta: dict) -> None:
        outdated = []
        if self.max_keep_ckpts > 0 and step not in self.keep_ckpt_ids:
            kept = [*self.keep_ckpt_ids, step]
            outdated = kept[: -self.max_keep_ckpts]
            # A deque of limited length: it drops the outdated ones itself.
            self.keep_ckpt_ids.append(step)
            runner.message_hub.update_info('keep_ckpt_ids', list(self.keep_ckpt_ids))

        self._saved_epoch = step
        filename = self.filename_tmpl.format(step)
        self.last_ckpt = self.file_backend.join_path(self.out_dir, filename)
        runner.message_hub.update_info('last_ckpt', self.last_ckpt)
        runner.save_checkpoint(
            self.out_dir,
            filename,
            self.file_client_args,
            save_optimizer=self.save_optimizer,
            save_param_scheduler=self.save_param_scheduler,
            meta=meta,
            by_epoch=self.by_epoch,
            backend_args=self.backend_args,
            **self.args,
        )
        if not is_main_process():
            return
        write_atomically(Path(runner.work_dir) / 'last_checkpoint', self.last_ckpt)
        for old in outdated:
            self._remove(self.file_backend.join_path(self.out_dir, self.filename_tmpl.format(old)))

    def _remove(self, path: str) -> None:
        if self.file_backend.isfile(path):
            self.file_backend.remove(path)
