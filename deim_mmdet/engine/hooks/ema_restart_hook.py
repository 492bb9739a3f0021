"""Starts the last stage from the best checkpoint of the stages with augmentation."""

import math
from typing import Any

from mmdet.registry import HOOKS
from mmengine.dist import all_gather_object
from mmengine.hooks import CheckpointHook, Hook
from mmengine.optim import OptimWrapper

from ... import compat
from ...checkpoints.loading import load_from_deim_mmdet
from ...utils.errors import MissingFileError, UserError
from ..checks import check_counts_epochs, evaluates_after
from ..resuming import match_parameters
from .dense_o2o_schedule_hook import DenseO2OScheduleHook
from .exp_warmup_ema import ExpWarmupEMAHook

#: File name of the checkpoint to restart from; it lies beside the others.
RESTART_CHECKPOINT = 'best_augmented.pth'
STATE = 'ema_restart'


@HOOKS.register_module()
class EMARestartHook(Hook):
    """Restarts from the best checkpoint of the augmented stages (DEIM and D-FINE's recipes).

    The last phase of training is the no-augmentation stage, or a part of it.

    1. If an evaluation before the last phase is a new best, the whole state is saved as
       ``best_augmented.pth``. Bests of the last phase don't replace it.
    2. Before the first epoch of the last phase, weights, EMA (with its number of updates) and
       optimiser are set to those of that checkpoint, and the EMA's decay to ``restart_decay``.
       Learning rate, epoch and iteration go on by the schedule.
    3. If an evaluation of the last phase is no new best of the whole run, the decay becomes smaller
       by ``decay_step``, down to 0, and the next epoch starts from the same checkpoint again.
       ``search=False`` leaves this out.

    The run's ``CheckpointHook`` (``save_best``) decides what is best; this hook acts after it. A
    restart is decided after an evaluation and carried out before the next epoch. A resumed run
    repeats the evaluation (:class:`AtomicCheckpointHook`), and so restarts where the uninterrupted
    one did. The message hub, and so every checkpoint, keeps the state (epoch and score of
    ``best_augmented.pth``, how often the decay was made smaller, whether a restart is due) as
    ``ema_restart``; the decay follows from the state by the config of the present run. Every
    process reads the file.

    Without an evaluation before the last phase there is no restart; a line is logged. A
    resumed run without its ``best_augmented.pth`` doesn't start. If a process can't read the file
    during a run, or the processes see different ones, an error is logged and training goes on from
    the weights that it has.

    Args:
        restart_decay: Decay of the EMA after the first restart, in [0, 1). If None,
            :class:`~deim_mmdet.engine.DEIMRunner` sets it.
        decay_step: Each further restart makes the decay smaller by this number, not negative. If
            None, ``DEIMRunner`` sets it.
        begin: First 0-based epoch of the last phase. If None, ``DEIMRunner`` sets it where the
            recipe has one; else it is the no-augmentation stage of ``DenseO2OScheduleHook``. The
            hook does nothing where the training ends before it.
        search: Whether to restart again after an evaluation that is no new best. If None,
            ``DEIMRunner`` sets it; else True.

    Raises:
        ValueError: A number is out of range or not given, or a hook that this one needs is missing.
        TypeError: The training loop doesn't count epochs.
        FileNotFoundError: The run is resumed and its ``best_augmented.pth`` isn't there.
    """

    priority = 'LOWEST'

    def __init__(
        self,
        restart_decay: float | None = None,
        decay_step: float | None = None,
        begin: int | None = None,
        search: bool | None = None,
    ) -> None:
        self.restart_decay = self.decay_step = self.begin = self.search = None
        self.set_default(restart_decay, decay_step, begin, search)

    def set_default(self, restart_decay, decay_step, begin=None, search=None) -> None:
        """Set the arguments that the config doesn't give."""
        if begin is not None and begin < 0:
            raise UserError(f'EMARestartHook needs begin >= 0, but got {begin}')
        if restart_decay is not None and not 0 <= restart_decay < 1:
            raise UserError(f'EMARestartHook needs restart_decay in [0, 1), got {restart_decay}')
        if decay_step is not None and decay_step < 0:
            raise UserError(f'EMARestartHook needs decay_step >= 0, but got {decay_step}')
        given = dict(restart_decay=restart_decay, decay_step=decay_step, begin=begin, search=search)
        for name, value in given.items():
            if getattr(self, name) is None:
                setattr(self, name, value)
        if self.search is False and self.decay_step is None:
            self.decay_step = 0.0

    def before_train(self, runner) -> None:
        check_counts_epochs(self, runner.train_loop)
        if self.restart_decay is None or self.decay_step is None:
            raise UserError(
                'EMARestartHook has no restart_decay or no decay_step: give both, or '
                "runner_type='DEIMRunner', which derives them"
            )
        begin = self._first_epoch(runner)
        if begin >= runner.max_epochs:
            return
        _find_hook(runner, ExpWarmupEMAHook)
        if self._checkpoint_hook(runner).save_best is None:
            raise UserError(
                'EMARestartHook restarts from the best checkpoint: set '
                "default_hooks.checkpoint.save_best, e.g. to 'coco/bbox_mAP'"
            )
        self._warn_of_late_evaluation(runner, begin)
        state = self._state(runner)
        if runner.epoch < begin and state['lowered'] is not None:
            # Resumed with more epochs than before: the last phase lies ahead again.
            self._update(runner, lowered=None, due=False)
        if state['epoch'] is not None:
            self._check_file(runner)

    def before_train_epoch(self, runner) -> None:
        begin = self._first_epoch(runner)
        if runner.epoch < begin:
            return
        state = self._state(runner)
        if state['epoch'] is None:
            if runner.epoch == begin:
                runner.logger.warning(
                    'No epoch before the last phase was evaluated: training goes on '
                    'without a restart'
                )
            return
        if state['lowered'] is None:
            state = self._update(runner, lowered=0, due=True)
        _find_hook(runner, ExpWarmupEMAHook).ema_model.decay = self._decay(state)
        if state['due']:
            self._restart(runner, state)
            self._update(runner, due=False)

    def before_val_epoch(self, runner) -> None:
        self._previous_best = self._best_score(runner)

    def after_val_epoch(self, runner, metrics: dict[str, float] | None = None) -> None:
        # Runner.val evaluates without a training.
        if 'training' not in compat.built_loops(runner):
            return
        begin = self._first_epoch(runner)
        if begin >= runner.max_epochs:
            return
        state, score = self._state(runner), self._best_score(runner)
        if score != self._previous_best:
            # Epochs are counted up before they are evaluated.
            if runner.epoch <= begin:
                self._save(runner, score)
        elif state['lowered'] is not None and self.search is not False:
            state = self._update(runner, lowered=state['lowered'] + 1, due=True)
            if runner.epoch < runner.max_epochs:
                runner.logger.info(
                    f'No new best in epoch {runner.epoch}: the next one starts from the best '
                    'checkpoint of the augmented stages again, with EMA decay '
                    f'{self._decay(state):.6g}'
                )

    def _save(self, runner, score: float) -> None:
        self._update(runner, epoch=runner.epoch, score=score)
        runner.save_checkpoint(
            self._checkpoint_hook(runner).out_dir,
            RESTART_CHECKPOINT,
            meta=dict(epoch=runner.epoch, iter=runner.iter),
        )

    def _restart(self, runner, state: dict[str, Any]) -> None:
        checkpoint, problem = self._read(runner)
        if problem is not None:
            runner.logger.error(
                f'Epoch {runner.epoch + 1} should restart from {self._path(runner)}, the best '
                f'checkpoint of the augmented stages, but {problem}. Training goes on from the '
                'weights that it has'
            )
            return
        epoch = checkpoint['meta']['epoch']
        if epoch != state['epoch']:
            runner.logger.warning(
                f'{self._path(runner)} is that of epoch {epoch}, not of epoch {state["epoch"]} as '
                'this run has noted: another run has written to the folder'
            )
        _find_hook(runner, ExpWarmupEMAHook).restore(checkpoint)
        restore_optimizer(runner.optim_wrapper, checkpoint['optimizer'])
        runner.logger.info(
            f'Epoch {runner.epoch + 1} of {runner.max_epochs}: restart from the best checkpoint of '
            f'the augmented stages, of epoch {epoch} with {state["score"]:.4f}; EMA decay '
            f'{self._decay(state):.6g}'
        )

    def _read(self, runner) -> tuple[dict | None, str | None]:
        """The checkpoint, or what is wrong with it; every process comes to the same result."""
        checkpoint = None
        try:
            checkpoint = load_from_deim_mmdet(self._path(runner), 'cpu')
            meta = checkpoint['meta']
            seen = meta['epoch'], meta['iter'], meta['time']
        except (OSError, RuntimeError, KeyError) as error:
            seen = f'{type(error).__name__}: {error}'
        found = all_gather_object(seen)
        if problems := [each for each in found if isinstance(each, str)]:
            return None, problems[0]
        if len(files := {*found}) > 1:
            written = ' and '.join(f'epoch {epoch}, of {time}' for epoch, _, time in sorted(files))
            return None, f'processes see different files: {written}'
        return checkpoint, None

    def _check_file(self, runner) -> None:
        path = self._path(runner)
        if not all(all_gather_object(self._checkpoint_hook(runner).file_backend.isfile(path))):
            raise MissingFileError(
                f'{path} is missing, the best checkpoint of the augmented stages, from which the '
                'last phase of this training restarts: copy it there from the folder that the '
                'training was started in, or take EMARestartHook out of custom_hooks to go on '
                'without restarts'
            )

    def _warn_of_late_evaluation(self, runner, begin: int) -> None:
        if not any(evaluates_after(runner, epoch) for epoch in range(1, begin + 1)):
            runner.logger.warning(
                f'No epoch before the last phase (from epoch {begin + 1} on) is '
                'evaluated, so that training cannot restart from the best of them: lower '
                f'train_cfg.val_interval={runner.train_loop.val_interval}'
            )

    def _decay(self, state: dict[str, Any]) -> float:
        return max(0.0, self.restart_decay - state['lowered'] * self.decay_step)

    def _first_epoch(self, runner) -> int:
        if self.begin is not None:
            return self.begin
        return _find_hook(runner, DenseO2OScheduleHook).stages[2]

    def _path(self, runner) -> str:
        hook = self._checkpoint_hook(runner)
        return hook.file_backend.join_path(hook.out_dir, RESTART_CHECKPOINT)

    def _best_score(self, runner) -> float | None:
        indicators = self._checkpoint_hook(runner).key_indicators
        key = 'best_score' if len(indicators) == 1 else f'best_score_{indicators[0]}'
        return runner.message_hub.get_info(key)

    @staticmethod
    def _checkpoint_hook(runner) -> CheckpointHook:
        return _find_hook(runner, CheckpointHook)

    def _state(self, runner) -> dict[str, Any]:
        nothing = dict(epoch=None, score=None, lowered=None, due=False)
        state = runner.message_hub.get_info(STATE, nothing)
        if 'lowered' not in state:
            # Older checkpoints hold the decay, and not all of them the numbers that it came from.
            first, step = state.pop('numbers', None) or (self.restart_decay, self.decay_step)
            last = state.pop('decay')
            # Rounded up, as the decay ends at 0.
            lowered = None if last is None else math.ceil((first - last) / (step or 1) - 0.01)
            state['lowered'] = lowered
        return state

    def _update(self, runner, **changes) -> dict[str, Any]:
        state = {**self._state(runner), **changes}
        runner.message_hub.update_info(STATE, state)
        return state


def restore_optimizer(optim_wrapper: OptimWrapper, saved: dict) -> None:
    """Set an optimiser's moments to saved ones; rates and decays of its groups stay.

    Args:
        optim_wrapper: The wrapper of the training.
        saved: A ``state_dict`` of this wrapper from another iteration.
    """
    optim_wrapper.zero_grad()
    current = optim_wrapper.state_dict()
    schedule = {k: v for k, v in current.items() if k in ('param_groups', 'base_param_settings')}
    optim_wrapper.load_state_dict({**saved, **schedule})
    match_parameters(optim_wrapper.optimizer)


def _find_hook(runner, kind: type[Hook]) -> Any:
    for hook in runner.hooks:
        if isinstance(hook, kind):
            return hook
    raise UserError(f'EMARestartHook needs {kind.__name__} among the hooks of the training')
