"""Training by CUDA graphs."""

import torch
from mmdet.registry import HOOKS
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper

from ... import compat
from ...models.detectors.graphed import GraphedNetwork
from ...utils.errors import UserError
from ..checks import bare_detector


@HOOKS.register_module()
class CUDAGraphHook(Hook):
    """Trains with the work from images to predictions as CUDA graphs, one for each size.

    See :mod:`~deim_mmdet.models.detectors.graphed`. Results don't change but for rounding.

    Raises:
        TypeError: The model isn't a :class:`~deim_mmdet.models.detectors.DEIMDetector`.
        ValueError: There is no GPU of Nvidia's, several processes train, or several iterations
            make a step.
    """

    priority = 'LOWEST'

    def before_train(self, runner) -> None:
        detector = bare_detector(self, runner.model)
        reason = self._reason_against(runner)
        if reason:
            raise UserError(f'CUDA graphs (--cuda-graph) {reason}: train without them')
        detector.static_shapes()
        detector.graphed = GraphedNetwork()

    def after_train(self, runner) -> None:
        # Its memory is free again, once nothing refers to the graphs.
        bare_detector(self, runner.model).graphed = None

    @staticmethod
    def _reason_against(runner) -> str:
        if not torch.cuda.is_available():
            return 'need a GPU with CUDA, and torch finds none'
        if is_model_wrapper(runner.model):
            return 'are made for one process, and this training is distributed'
        if compat.accumulated_iterations(runner.optim_wrapper) > 1:
            # The gradients of a graph lie in the same memory each time.
            return 'do not accumulate gradients over several iterations'
        return ''
