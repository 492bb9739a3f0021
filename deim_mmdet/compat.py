"""What is private to, or differs between, versions and builds of the libraries beneath.

| what | why |
|---|---|
| operators of MMCV that stand in for missing ones | ``mmcv-lite``, a wheel on PyPI, has none, and |
| | ``mmdet`` imports them everywhere; this package's models need none of them |
| loops that a runner has built | its public properties build the ones that are missing |
| what a runner resumes from | it tells its hooks nowhere else |
| setting a loop's iteration | the public property is for reading |
| iterations that make one step | an optimiser's wrapper tells them nowhere else |
| how an optimiser's wrapper clips | schedulers put a ``step`` on the wrapper that is bound |
| | to it: a wrapper around it, or of a subclass, would be passed over |
| base class and position of schedulers | mmengine's names of both begin with an underscore |
| changing a data set's class names | the public property gives a copy |
| the visualizer of mmdet's hook | it can't be given another one |
| the annotations of mmdet's COCO metric | reading the file again would take as long again |
| whether a preprocessor exchanges channels | it tells so nowhere else |
| copying many tensors at once | torch has no public operator for it |
| linear layers by oneDNN | torch has no public operator for them |
| devices that an operator has kernels for | torch tells them nowhere else |
"""

import importlib.util
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

OPERATORS = 'mmcv._ext'


class MissingOperatorError(RuntimeError):
    """An operator of MMCV is called that this build of MMCV doesn't have."""


def provide_operators() -> bool:
    """Let ``mmcv.ops`` be imported where MMCV has no compiled operators.

    Each of them then raises :class:`MissingOperatorError` when it is called. Operators that are
    there are never replaced. ``import deim_mmdet`` does this before it imports mmdet.

    Returns:
        Whether operators are missing, and stood in for.
    """
    if OPERATORS in sys.modules:
        return isinstance(sys.modules[OPERATORS], _MissingOperators)
    if importlib.util.find_spec(OPERATORS) is not None:
        return False
    module = _MissingOperators(OPERATORS)
    # mmengine looks for it by find_spec, which fails for a module that has none.
    module.__spec__ = ModuleSpec(OPERATORS, None)
    sys.modules[OPERATORS] = module
    return True


class _MissingOperators(ModuleType):
    """In place of ``mmcv._ext``: has every operator by name."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith('__'):
            raise AttributeError(name)

        def missing(*args: Any, **kwargs: Any) -> None:
            raise MissingOperatorError(
                f"MMCV's operator {name} is called, but this MMCV is installed without operators "
                '(mmcv-lite, or built with MMCV_WITH_OPS=0): run `make ops` in a checkout of '
                'deim_mmdet, which compiles them, or install a wheel of mmcv that has them'
            )

        return missing


def built_loops(runner: Any) -> dict[str, Any]:
    """The loops that a runner has built so far, by ``'training'``, ``'validation'``, ``'test'``.

    mmengine keeps a loop's config in the place of the loop until it needs the loop.
    """
    loops = dict(training=runner._train_loop, validation=runner._val_loop, test=runner._test_loop)
    return {split: loop for split, loop in loops.items() if hasattr(loop, 'run')}


def resumes(runner: Any) -> bool:
    """Whether a runner resumes a training, instead of starting a new one."""
    return runner._resume


def looks_for_checkpoint(runner: Any) -> bool:
    """Whether a runner is about to look for the checkpoint that it resumes from."""
    return runner._resume and runner._load_from is None and not runner._has_loaded


def resume_from(runner: Any, path: str | None) -> None:
    """Name the checkpoint that a runner is going to resume from."""
    runner._load_from = path


def set_iteration(loop: Any, iteration: int) -> None:
    """Let a training loop be at an iteration, counted from 0."""
    loop._iter = iteration


def accumulated_iterations(optim_wrapper: Any) -> int:
    """Iterations of the training loop that make one step of the optimiser."""
    return optim_wrapper._accumulative_counts


def scheduler_class() -> type:
    """The class that all of mmengine's schedulers derive from, and ours with them."""
    from mmengine.optim import _ParamScheduler

    return _ParamScheduler


def saved_position(state: dict) -> int:
    """The iteration that a scheduler had reached when it gave this state."""
    return state['_global_step']


def set_position(scheduler: Any, iteration: int, values: list[float]) -> None:
    """Let a scheduler be at an iteration, counted from 0, where it has set these values."""
    scheduler._global_step = iteration
    scheduler._last_value = values


def own_metainfo(dataset: Any) -> dict:
    """Class names and the like that a data set, or a wrapper of one, keeps; to be changed.

    Where the parts of mmdet's ``ConcatDataset`` differ, it keeps a list of theirs; from then on it
    keeps those of the first. Data sets of other libraries keep none: the dictionary is empty.
    """
    kept = getattr(dataset, '_metainfo', {})
    if isinstance(kept, list):
        dataset._metainfo = kept = kept[0]
    return kept


def replace_visualizer(hook: Any, build: Callable[[Any], Any]) -> Any:
    """Put ``build(visualizer)`` in the place of the visualizer of mmdet's hook, and return it."""
    hook._visualizer = build(hook._visualizer)
    return hook._visualizer


def annotations_of(metric: Any) -> Any:
    """Content of the file of mmdet's ``CocoMetric``; None where it takes objects from samples."""
    return metric._coco_api


def exchanges_channels(preprocessor: Any) -> bool:
    """Whether a data preprocessor exchanges red and blue."""
    return preprocessor._channel_conversion


def set_clipping(
    wrapper: Any, function: Callable | None, arguments: dict | None
) -> tuple[Callable | None, dict | None]:
    """Have an optimiser's wrapper clip by ``function(parameters, **arguments)``.

    Returns:
        Function and arguments that it had before; None each where it doesn't clip.
    """
    before = getattr(wrapper, 'clip_func', None), wrapper.clip_grad_kwargs
    wrapper.clip_func, wrapper.clip_grad_kwargs = function, arguments
    return before


def copy_each(targets: Any, sources: Any) -> None:
    """Copy a list of tensors into another of the same length, with few kernels on a GPU."""
    import torch

    if targets:
        torch._foreach_copy_(targets, sources)


def has_onednn_linear() -> bool:
    """Whether :func:`onednn_linear` can be called with this build of torch."""
    import torch

    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, '_linear_pointwise')


def onednn_linear(x: Any, weight: Any, bias: Any) -> Any:
    """A linear layer by oneDNN: (N, I), (O, I) and (O,) or None to (N, O), without gradients."""
    import torch

    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, 'none', [], '')


def has_kernel(operator: str, device: str) -> bool:
    """Whether an operator of torch, by its full name, has a kernel for ``'CPU'`` or ``'CUDA'``."""
    import torch

    return torch._C._dispatch_has_kernel_for_dispatch_key(operator, device)
