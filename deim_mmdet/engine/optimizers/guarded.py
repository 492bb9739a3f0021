"""An optimiser wrapper of any class that lets gradients be looked at before they are clipped."""

from collections.abc import Callable

from mmengine.optim import OptimWrapper
from torch import Tensor


def guarded(wrapper: OptimWrapper, check: Callable[[], None]) -> OptimWrapper:
    """A second optimiser wrapper with the state of ``wrapper``, which calls a function.

    It calls the function after the backward pass that completes the gradients of a step: when
    those of all iterations of the step, and of all processes, are added up, but not clipped yet.

    Args:
        wrapper: Wrapper of any class; it stays as it is. What changes in one of the two, such as
            the number of iterations or the optimiser's state, changes in the other.
        check: What to call. It may look at the gradients and change them.
    """

    class Guarded(type(wrapper)):
        # Not step(): mmengine's schedulers put their own on every single wrapper, to count.
        def backward(self, loss: Tensor, **kwargs) -> None:
            super().backward(loss, **kwargs)
            if self.should_update():
                check()

    new = Guarded.__new__(Guarded)
    new.__dict__ = wrapper.__dict__
    return new
