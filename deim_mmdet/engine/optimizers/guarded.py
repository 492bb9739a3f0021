"""An optimiser wrapper of any class that has the gradients of a step looked at."""

from collections.abc import Callable

from mmengine.optim import OptimWrapper


def guarded(wrapper: OptimWrapper, clip: Callable) -> OptimWrapper:
    """A second optimiser wrapper with the state of ``wrapper``, which clips by a function.

    The function is called once the gradients of a step are complete: those of all its iterations,
    and of all processes. It is called as well where ``wrapper`` clips nothing.

    Args:
        wrapper: Wrapper of any class; it stays as it is. What changes in one of the two, such as
            the number of iterations or the optimiser's state, changes in the other.
        clip: What to call, with the parameters that have a gradient and the wrapper's
            ``clip_grad``. What it returns is logged as norm of the gradients, unless it is None.
    """
    arguments = wrapper.clip_grad_kwargs or dict(norm_type=2.0)

    class Guarded(type(wrapper)):
        # Properties come before what the shared state holds by these names.
        clip_func = property(lambda self: clip)
        clip_grad_kwargs = property(lambda self: arguments)
        grad_name = property(lambda self: vars(self).get('grad_name', 'grad_norm'))

    new = Guarded.__new__(Guarded)
    new.__dict__ = wrapper.__dict__
    return new
