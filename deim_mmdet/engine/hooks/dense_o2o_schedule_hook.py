"""Switches Dense O2O, the other augmentations and the batch augments by epoch."""

from collections.abc import Iterator
from typing import Any

from deim_mmdet.utils import Stage

from mmdet.registry import HOOKS
from mmengine.hooks import Hook

from ... import compat
from ...utils.errors import UserError
from ..checks import bare_model, check_counts_epochs

# Where wrappers, mmdet's and mmengine's, keep the datasets and transforms that they wrap.
CHILDREN = (
    *('dataset', 'datasets', compat.SLICED_DATASET),
    *('pipeline', 'transforms', 'load', 'mosaic', 'single'),
)


def parts_with(root: Any, method: str) -> Iterator[Any]:
    """Everything under a dataset or transform, itself included, that has a method of this name."""
    seen = set()
    pending = [root]
    while pending:
        part = pending.pop()
        if part is None or isinstance(part, (str, dict)) or id(part) in seen:
            continue
        seen.add(id(part))
        if isinstance(part, (list, tuple)):
            pending.extend(part)
            continue
        if callable(getattr(part, method, None)):
            yield part
        # Not getattr() of each name: wrappers that pass attributes on would repeat them.
        attributes = getattr(part, '__dict__', {})
        pending.extend(attributes[name] for name in CHILDREN if name in attributes)


def batch_augments(preprocessor: Any) -> list[Any]:
    """The batch augments of a model's data preprocessor, if it has any."""
    return [*(getattr(preprocessor, 'batch_augments', None) or [])]


def set_stage(stage: Stage, dataset: Any, preprocessor: Any = None) -> None:
    """Switch all augmentations of a training, those that have ``set_stage``.

    Args:
        stage: The stage of the training.
        dataset: The training data set, for its transforms, through wrappers.
        preprocessor: The model's data preprocessor, for its batch augments. None for none.
    """
    for part in parts_with([dataset, batch_augments(preprocessor)], 'set_stage'):
        part.set_stage(stage)


def late_criterion(model: Any) -> Any | None:
    """The criterion of a model's head, if it has a matcher for the last epochs; else None."""
    criterion = getattr(getattr(bare_model(model), 'bbox_head', None), 'criterion', None)
    return criterion if getattr(criterion, 'late_matcher', None) is not None else None


@HOOKS.register_module()
class DenseO2OScheduleHook(Hook):
    """Sets the :class:`Stage` of all augmentations, and the matcher, before every training epoch.

    It calls ``set_stage`` of every transform of the training dataset (through wrappers) and of
    every batch augment of the model's data preprocessor that has this method. The stage follows
    from the epoch alone, so nothing has to be saved: a resumed run is in the right stage at once.
    Transforms keep their stage in shared memory, which persistent workers see. All processes do the
    same. The message hub keeps the stage's name as ``stage``.

    A criterion with a ``late_matcher`` changes over to it at ``matcher_change_epoch``. This, too,
    follows from the epoch alone.

    Args:
        stages: First 0-based epochs ``(t1, t2, t3)`` of the dense, flat and no-augmentation stage;
            ``(0, 0, t3)`` has neither warm-up nor dense stage. If None,
            :class:`~deim_mmdet.engine.DEIMRunner` sets them.
        matcher_change_epoch: First 0-based epoch of the ``late_matcher``. If None, ``DEIMRunner``
            sets it.

    Raises:
        ValueError: ``stages`` are not three epochs in order, or not given; or the criterion has a
            ``late_matcher``, but no epoch is given for it.
        TypeError: The training loop doesn't count epochs.
    """

    def __init__(
        self,
        stages: tuple[int, int, int] | None = None,
        matcher_change_epoch: int | None = None,
    ) -> None:
        self.stages, self.matcher_change_epoch = None, matcher_change_epoch
        if stages is not None:
            self.set_default(stages)
        self._stage: Stage | None = None

    def set_default(
        self, stages: tuple[int, int, int], matcher_change_epoch: int | None = None
    ) -> None:
        """Set what the config doesn't give."""
        if self.matcher_change_epoch is None:
            self.matcher_change_epoch = matcher_change_epoch
        if self.stages is not None:
            return
        stages = tuple(stages)
        if len(stages) != 3 or not 0 <= stages[0] <= stages[1] <= stages[2]:
            raise UserError(
                'DenseO2OScheduleHook needs stages=(t1, t2, t3), epochs in ascending order, but '
                f'got {stages}'
            )
        self.stages = stages

    def before_train(self, runner) -> None:
        check_counts_epochs(self, runner.train_loop)
        if self.stages is None:
            raise UserError(
                'DenseO2OScheduleHook has no stages: give stages=(t1, t2, t3) in epochs, or '
                "runner_type='DEIMRunner', which derives them"
            )
        if late_criterion(runner.model) is not None and self.matcher_change_epoch is None:
            raise UserError(
                'the criterion has a late_matcher, but nothing says from which epoch on: set '
                'recipe.matcher_change_epoch, or criterion.late_matcher=None'
            )
        self._stage = None

    def before_train_epoch(self, runner) -> None:
        self._choose_matcher(runner)
        stage = Stage.at_epoch(runner.epoch, self.stages)
        preprocessor = bare_model(runner.model).data_preprocessor
        set_stage(stage, runner.train_dataloader.dataset, preprocessor)
        if stage != self._stage:
            self._stage = stage
            runner.message_hub.update_info('stage', stage.label)
            runner.logger.info(
                f'Epoch {runner.epoch + 1} of {runner.max_epochs}: stage {stage.label} begins'
                if runner.epoch in (0, *self.stages)
                else f'Epoch {runner.epoch + 1} of {runner.max_epochs}: within stage {stage.label}'
            )

    def _choose_matcher(self, runner) -> None:
        criterion = late_criterion(runner.model)
        if criterion is None:
            return
        late = runner.epoch >= self.matcher_change_epoch
        if late != criterion.late:
            runner.logger.info(
                f'Epoch {runner.epoch + 1} of {runner.max_epochs}: '
                f'{type(criterion.late_matcher if late else criterion.matcher).__name__} matches '
                'from here on'
            )
        criterion.late = late
