"""Tests the fused form of a model."""

from mmdet.registry import HOOKS
from mmengine.hooks import Hook

from ...deployment import fuse
from ..checks import bare_model


@HOOKS.register_module()
class FusedTestHook(Hook):
    """Puts a fused copy in the place of the model while it is tested.

    The copy has the parameters that the test would have had, those of the EMA model where there is
    one. It is made once more for each test.

    Args:
        half: See :func:`~deim_mmdet.deployment.fuse`; on a CPU it changes nothing.
        graph: Likewise.
    """

    # After hooks that exchange parameters.
    priority = 'VERY_LOW'

    def __init__(self, half: bool = True, graph: bool = True) -> None:
        self.half, self.graph = half, graph

    def before_test_epoch(self, runner) -> None:
        self._model = runner.model
        runner.model = fuse(bare_model(runner.model), self.half, self.graph)

    def after_test_epoch(self, runner, metrics: dict | None = None) -> None:
        runner.model = self._model
