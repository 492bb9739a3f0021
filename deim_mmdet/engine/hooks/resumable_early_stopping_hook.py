"""Early stopping that a resumed run goes on with."""

from mmdet.registry import HOOKS
from mmengine.hooks import EarlyStoppingHook


@HOOKS.register_module()
class ResumableEarlyStoppingHook(EarlyStoppingHook):
    """mmengine's ``EarlyStoppingHook`` whose count of evaluations survives a resume.

    mmengine's own starts counting anew (0.10.7). The message hub, and so every checkpoint, keeps
    best score and count as ``early_stopping``. A run that was stopped and is resumed stops again
    after the evaluation that :class:`AtomicCheckpointHook` repeats, unless ``patience`` or
    ``stopping_threshold`` was raised. Arguments are those of ``EarlyStoppingHook``. For an AP set
    ``min_delta``: its default of 0.1 is a tenth of the whole scale.

    Example:
        >>> custom_hooks = [..., dict(
        ...     type='ResumableEarlyStoppingHook', monitor='coco/bbox_mAP', min_delta=0.0005,
        ...     patience=10)]
    """

    # Before the checkpoint hook, which may begin with an evaluation.
    priority = 'LOW'

    def before_train(self, runner) -> None:
        state = runner.message_hub.get_info('early_stopping')
        if state is not None:
            self.best_score, self.wait_count = state['best_score'], state['wait_count']

    def after_val_epoch(self, runner, metrics: dict[str, float] | None = None) -> None:
        super().after_val_epoch(runner, metrics or {})
        runner.message_hub.update_info(
            'early_stopping', dict(best_score=self.best_score, wait_count=self.wait_count)
        )
