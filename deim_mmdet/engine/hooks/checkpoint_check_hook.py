"""Fits a checkpoint's class layers to the model, and refuses a checkpoint of another model."""

from mmdet.registry import HOOKS
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper

from ... import compat
from ...checkpoints.classes import adapt_class_layers
from ...models.layers.input_channels import adapt_checkpoint
from ..checks import bare_model, check_checkpoint, check_finite, check_resumable, class_names
from ..resuming import check_same_optimizer


@HOOKS.register_module()
class CheckpointCheckHook(Hook):
    """Compares parameters when a checkpoint is loaded, before any hook or the model sees it.

    mmengine itself only logs parameters that don't fit and goes on without them. If training
    starts from a checkpoint with other classes, the model's new class layers replace those of the
    checkpoint, except the rows of classes with the same name; a line is logged. Weights for images
    of three channels are adapted to another number, which is logged, too. Testing and
    resuming refuse such a checkpoint. NaN and infinite numbers are always refused; resuming also
    refuses another optimiser.

    Raises:
        ValueError: See :func:`~deim_mmdet.engine.checks.check_checkpoint`,
            :func:`~deim_mmdet.engine.checks.check_finite`,
            :func:`~deim_mmdet.engine.checks.check_resumable` and
            :func:`~deim_mmdet.engine.resuming.check_same_optimizer`.
    """

    priority = 'HIGHEST'

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        model = bare_model(runner.model)
        if compat.resumes(runner):
            check_resumable(checkpoint)
            if isinstance(runner.optim_wrapper, OptimWrapper):
                check_same_optimizer(runner, checkpoint)
        elif 'training' in compat.built_loops(runner):
            adapt_checkpoint(model, checkpoint.get('state_dict', checkpoint))
            classes = class_names(runner.train_dataloader.dataset)
            message = adapt_class_layers(model, checkpoint, classes)
            if message is not None:
                runner.logger.info(message)
        check_checkpoint(model, checkpoint)
        check_finite(model, checkpoint)
