"""Mixed precision on the CPU, where mmengine's ``AmpOptimWrapper`` (0.10.7) cannot be built."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from mmdet.registry import OPTIM_WRAPPERS
from mmengine.optim import OptimWrapper
from torch import nn


@OPTIM_WRAPPERS.register_module()
class CpuAmpOptimWrapper(OptimWrapper):
    """``OptimWrapper`` whose forward pass runs under bfloat16 autocast on the CPU.

    bfloat16 has the exponent range of float32, so the loss needs no scaling. The arguments are
    those of ``OptimWrapper``.
    """

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Context of the forward pass; see :class:`mmengine.optim.OptimWrapper`."""
        with super().optim_context(model), torch.autocast('cpu', dtype=torch.bfloat16):
            yield
