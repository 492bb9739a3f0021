"""Checkpoints that a killed run cannot leave half written."""

from collections.abc import Collection
from fnmatch import fnmatchcase
from pathlib import Path

from mmdet.evaluation import MultiDatasetsEvaluator
from mmdet.registry import HOOKS
from mmengine.dist import is_main_process
from mmengine.fileio import LocalBackend
from mmengine.hooks import CheckpointHook
from mmengine.runner import EpochBasedTrainLoop

from ...checkpoints.loading import load_from_local
from ...utils.errors import CheckpointError, UserError
from ...utils.files import remove_unfinished, write_text
from ...utils.text import some
from ..checks import evaluates_after
from ..faults import check_space, checkpoint_size
from ..saving import let_save_whole


@HOOKS.register_module()
class AtomicCheckpointHook(CheckpointHook):
    """mmengine's ``CheckpointHook`` in an order that always leaves a checkpoint to resume from.

    First the new checkpoint is written, and gets its name once it is complete. Then the pointer
    ``last_checkpoint`` is replaced. Only then outdated checkpoints are removed: those over
    ``max_keep_ckpts``, and former best ones, which the checkpoint before may still name. The
    checkpoint holds the names of the outdated ones. So a run that is killed before it has removed
    them does so when it is resumed. The end of the training removes those that are left.

    A checkpoint is written before the evaluation that follows it, and only then. So it doesn't hold
    what hooks learn from the result. A resumed run evaluates first, wherever the uninterrupted one
    did after this checkpoint.

    Before training it removes half-written files of a killed run, and compares the free space with
    the size of a checkpoint. The first checkpoint is read again: torch refuses types that mmengine
    lets anything keep in a checkpoint. Functions in the states of schedulers aren't saved.

    Raises:
        RunFault: Not even one checkpoint fits on the disk.
        ValueError: ``save_best`` is no figure of the evaluation. Before training this is known
            where the evaluator's figures begin otherwise. Or the first checkpoint can't be loaded.
    """

    _training = False
    _readable = False

    def before_train(self, runner) -> None:
        super().before_train(runner)
        let_save_whole(runner)
        # The path gets into the checkpoint, which may hold text but no path objects.
        self.out_dir = str(self.out_dir)
        self._training = True
        self._check_best(_figures(runner))
        self._enter_best(
            {key: path and self._in_own_folder(path) for key, path in self._entered_best().items()}
        )
        self._outdated = list(runner.message_hub.get_info('outdated_ckpts', []))
        if is_main_process():
            self._remove_outdated()
            if isinstance(self.file_backend, LocalBackend):
                for folder in {runner.work_dir, self.out_dir}:
                    remove_unfinished(folder)
                check_space(self.out_dir, checkpoint_size(runner))
        self._outdated = []
        self._repeat_evaluation(runner)

    def after_train(self, runner) -> None:
        super().after_train(runner)
        if is_main_process():
            self._remove_outdated()

    def _in_own_folder(self, path: str) -> str:
        """Today's path of a checkpoint; the work directory may have been copied or moved."""
        own = self.file_backend.join_path(self.out_dir, Path(path).name)
        return own if self.file_backend.isfile(own) else path

    def _repeat_evaluation(self, runner) -> None:
        info = runner.message_hub.runtime_info
        # Earlier versions saved an epoch again after its evaluation, with its number.
        known = [info.pop(name, None) for name in ('evaluated_epoch', 'validated_epoch')]
        by_epoch = isinstance(runner.train_loop, EpochBasedTrainLoop)
        done = runner.epoch if by_epoch else runner.iter
        if self.by_epoch == by_epoch and done not in known and evaluates_after(runner, done):
            runner.logger.info(
                f'{"Epoch" if by_epoch else "Iteration"} {done} was saved before its evaluation: '
                'evaluating'
            )
            runner.val_loop.run()

    def after_train_epoch(self, runner) -> None:
        if self.by_epoch and (
            self.every_n_epochs(runner, self.interval, self.save_begin)
            or (self.save_last and self.is_last_train_epoch(runner))
        ):
            runner.logger.info(f'Saving checkpoint at {runner.epoch + 1} epochs')
            self._write(runner, runner.epoch + 1, epoch=runner.epoch + 1, iter=runner.iter)

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        if not self.by_epoch and (
            self.every_n_train_iters(runner, self.interval, self.save_begin)
            or (self.save_last and self.is_last_train_iter(runner))
        ):
            runner.logger.info(f'Saving checkpoint at {runner.iter + 1} iterations')
            self._write(runner, runner.iter + 1, epoch=runner.epoch, iter=runner.iter + 1)

    def after_val_epoch(self, runner, metrics: dict[str, float] | None = None) -> None:
        # Runner.val evaluates without a training; mmengine's hook isn't made for that (0.10.7).
        if not self._training:
            return
        self._check_best(metrics)
        # With a new best, mmengine (0.10.7) writes the last checkpoint again, if it knows one. It
        # also removes the former best one before it has written the new one. So neither is entered
        # here while it works.
        last, self.last_ckpt = self.last_ckpt, None
        former = self._entered_best()
        self._enter_best(dict.fromkeys(former))
        super().after_val_epoch(runner, metrics)
        self.last_ckpt = last
        new = {key: path for key, path in self._entered_best().items() if path}
        self._enter_best({**former, **new})
        self._outdated += [Path(former[key]).name for key in new if former.get(key)]

    def _write(self, runner, step: int, **meta: int) -> None:
        """Write the checkpoint of an epoch or iteration, then remove the outdated ones.

        Args:
            runner: The training.
            step: The number in the name.
            meta: Numbers of finished epochs and iterations.
        """
        if self.max_keep_ckpts > 0:
            kept = [*self.keep_ckpt_ids, step]
            self._outdated += map(self.filename_tmpl.format, kept[: -self.max_keep_ckpts])
            # A deque of limited length, which drops the outdated ones itself.
            self.keep_ckpt_ids.append(step)
            runner.message_hub.update_info('keep_ckpt_ids', list(self.keep_ckpt_ids))
        runner.message_hub.update_info('outdated_ckpts', list(self._outdated))

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
        if is_main_process():
            self._check_readable()
            write_text(Path(runner.work_dir) / 'last_checkpoint', self.last_ckpt)
            self._remove_outdated()
        self._outdated = []

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        saved = checkpoint.get('param_schedulers', [])
        for states in saved.values() if isinstance(saved, dict) else [saved]:
            for state in states:
                # OneCycleLR has one, to which the optimiser is bound. A resumed one has its own.
                for name in [name for name, value in state.items() if callable(value)]:
                    del state[name]

    def _check_readable(self) -> None:
        if not self._readable and isinstance(self.file_backend, LocalBackend):
            try:
                load_from_local(self.last_ckpt, 'cpu')
            except CheckpointError as error:
                raise UserError(
                    f'this training could not be resumed: {error}. A hook or a scheduler of it '
                    'keeps that object in its checkpoints: let it keep numbers, texts and tensors'
                ) from error
            self._readable = True

    def _remove_outdated(self) -> None:
        for name in self._outdated:
            path = self.file_backend.join_path(self.out_dir, name)
            if path not in self._entered_best().values() and self.file_backend.isfile(path):
                self.file_backend.remove(path)

    def _check_best(self, figures: Collection[str]) -> None:
        """Compare ``save_best`` with names of figures, or with patterns of them."""
        for name in self.key_indicators if self.save_best else ():
            if name != 'auto' and not any(name == f or fnmatchcase(name, f) for f in figures):
                raise UserError(
                    f'default_hooks.checkpoint.save_best={name!r} is no figure of the evaluation, '
                    f'which gives {some(figures, 20) or "none"}'
                )

    def _entered_best(self) -> dict[str, str | None]:
        """Best path by indicator (the figure that decides); '' stands for a single one."""
        if not self.save_best:
            return {}
        return dict(getattr(self, 'best_ckpt_path_dict', None) or {'': self.best_ckpt_path})

    def _enter_best(self, paths: dict[str, str | None]) -> None:
        if hasattr(self, 'best_ckpt_path_dict'):
            self.best_ckpt_path_dict.update(paths)
        elif paths:
            self.best_ckpt_path = paths['']


def _figures(runner) -> set[str]:
    """Patterns of the names of an evaluation's figures, as far as they are known before one."""
    evaluator = None if runner.val_loop is None else runner.val_loop.evaluator
    metrics = getattr(evaluator, 'metrics', ())
    if not metrics or isinstance(evaluator, MultiDatasetsEvaluator):
        return {'*'}
    return {f'{metric.prefix}/*' if metric.prefix else '*' for metric in metrics}
