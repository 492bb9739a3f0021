"""Refuses a checkpoint that belongs to another model."""

from mmdet.registry import HOOKS
from mmengine.hooks import Hook

from ..checks import bare_model, check_checkpoint


@HOOKS.register_module()
class CheckpointCheckHook(Hook):
    """Compares parameter shapes when a checkpoint is loaded, before any hook or the model sees it.

    mmengine itself only logs parameters that don't fit and goes on without them.

    Raises:
        ValueError: See :func:`~deim_mmdet.engine.checks.check_checkpoint`.
    """

    priority = 'HIGHEST'

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        check_checkpoint(bare_model(runner.model), checkpoint)
