"""Everything here is private to other libraries, or differs between their versions and builds.

It holds for mmengine 0.10.7, mmdet 3.3.0, mmcv 2.1.0, torch 2.13 and the fork's versions in
docs/compatibility.md.

| what | why |
|---|---|
| stand-ins for MMCV's operators | ``mmcv-lite``, a wheel on PyPI, has none, and ``mmdet`` imports |
| | them everywhere; this package's models need none of them, test-time augmentation and many of |
| | mmdet's need one |
| loops that a runner has built | its public properties build the missing ones |
| the checkpoint that a runner resumes from | no public name says it |
| setting a loop's iteration | the public property can only be read |
| iterations that make one step | no public name of an optimiser's wrapper says them |
| how an optimiser's wrapper clips | schedulers put a ``step`` that is bound to the wrapper on it: |
| | they would miss a wrapper around it, or one of a subclass |
| base class and position of schedulers | mmengine's names of both begin with an underscore |
| the data set of a loader with ``num_batch_per_epoch`` | the wrapper around it has no public |
| | name for it |
| changing a data set's class names | the public property gives a copy |
| the annotations of mmdet's COCO metric | reading the file again would take as long again |
| whether a preprocessor exchanges channels | no public name says it |
| copying many tensors, or adding to them, at once | torch has no public operator for it |
| how often a tensor was changed in place | torch has no public name for it |
| linear layers by oneDNN | torch has no public operator for them |
| devices that an operator has kernels for | no public function of torch says it |
| how many forms of a module are compiled | torch has the option in a private module |
| capturing CUDA graphs beside other threads | not every torch can be told so |
"""

import contextlib
import functools
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterator
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

OPERATORS = 'mmcv._ext'


class MissingOperatorError(RuntimeError):
    """A called operator of MMCV is missing in this build of MMCV."""


def provide_operators() -> bool:
    """Let ``mmcv.ops`` be imported where MMCV has no compiled operators.

    Non-maximum suppression is then computed in PyTorch. Each of the others raises
    :class:`MissingOperatorError` when it is called. Operators that are there are never replaced.
    ``import deim_mmdet`` does this before it imports mmdet.

    Returns:
        Whether operators were missing and now have stand-ins.
    """
    if OPERATORS in sys.modules:
        return isinstance(sys.modules[OPERATORS], _MissingOperators)
    if importlib.util.find_spec(OPERATORS) is not None:
        return False
    module = _MissingOperators(OPERATORS)
    # mmengine looks for the module by find_spec, which fails for a module without a spec.
    module.__spec__ = ModuleSpec(OPERATORS, None)
    sys.modules[OPERATORS] = module
    return True


class _MissingOperators(ModuleType):
    """Replaces ``mmcv._ext``: has an operator of any name, of which only ``nms`` works."""

    @staticmethod
    def nms(boxes: Any, scores: Any, iou_threshold: float, offset: int) -> Any:
        from .utils.nms import nms

        return nms(boxes, scores, iou_threshold, offset)

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
    """Whether a runner resumes a training instead of starting a new one."""
    return runner._resume


def looks_for_checkpoint(runner: Any) -> bool:
    """Whether a runner is about to look for the checkpoint that it resumes from."""
    return runner._resume and runner._load_from is None and not runner._has_loaded


def resume_from(runner: Any, path: str | None) -> None:
    """Set the checkpoint that a runner is going to resume from."""
    runner._load_from = path


def set_iteration(loop: Any, iteration: int) -> None:
    """Move a training loop to an iteration, counted from 0."""
    loop._iter = iteration


def accumulated_iterations(optim_wrapper: Any) -> int:
    """Iterations of the training loop that make one step of the optimiser."""
    return optim_wrapper._accumulative_counts


def scheduler_class() -> type:
    """The class that all of mmengine's schedulers derive from, and ours with them."""
    from mmengine.optim import _ParamScheduler

    return _ParamScheduler


def saved_position(state: dict) -> int:
    """The iteration that a scheduler had reached when it saved this state."""
    return state['_global_step']


def set_position(scheduler: Any, iteration: int, values: list[float]) -> None:
    """Move a scheduler to an iteration, counted from 0, at which it has set these values."""
    scheduler._global_step = iteration
    scheduler._last_value = values


def own_metainfo(dataset: Any) -> dict:
    """Class names and the like that a data set or a wrapper keeps; the caller may change them.

    If the parts of mmdet's ``ConcatDataset`` differ, it keeps a list; from this call on it keeps
    the first part's. Data sets of other libraries keep none: the dictionary is empty.
    """
    kept = getattr(dataset, '_metainfo', {})
    if isinstance(kept, list):
        dataset._metainfo = kept = kept[0]
    return kept


def annotations_of(metric: Any) -> Any:
    """Annotations of mmdet's ``CocoMetric``; None where it takes objects from samples."""
    return metric._coco_api


def exchanges_channels(preprocessor: Any) -> bool:
    """Whether a data preprocessor exchanges red and blue."""
    return preprocessor._channel_conversion


#: Where the wrapper that mmengine puts around a data set for ``num_batch_per_epoch`` keeps it.
SLICED_DATASET = '_dataset'


def set_clipping(
    wrapper: Any, function: Callable | None, arguments: dict | None
) -> tuple[Callable | None, dict | None]:
    """Make an optimiser's wrapper clip by ``function(parameters, **arguments)``.

    Returns:
        Function and arguments that it had before; both None where it didn't clip.
    """
    before = getattr(wrapper, 'clip_func', None), wrapper.clip_grad_kwargs
    wrapper.clip_func, wrapper.clip_grad_kwargs = function, arguments
    return before


def copy_each(targets: Any, sources: Any) -> None:
    """Copy a list of tensors into another of the same length, with few kernels on a GPU."""
    import torch

    if targets:
        torch._foreach_copy_(targets, sources)


def versions(tensors: Any) -> list[int]:
    """How often each tensor was changed in place; the same for all made in inference mode."""
    return [0 if tensor.is_inference() else tensor._version for tensor in tensors]


def add_to_each(targets: Any, number: float) -> None:
    """Add a number to each tensor of a list, with few kernels on a GPU."""
    import torch

    if targets:
        torch._foreach_add_(targets, number)


def has_onednn_linear() -> bool:
    """Whether :func:`onednn_linear` can be called with this build of torch."""
    import torch

    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, '_linear_pointwise')


def onednn_linear(x: Any, weight: Any, bias: Any) -> Any:
    """A linear layer by oneDNN, without gradients.

    Args:
        x: (N, I), N inputs of I channels.
        weight: (O, I), for O output channels.
        bias: (O,) or None.

    Returns:
        (N, O).
    """
    import torch

    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, 'none', [], '')


def has_kernel(operator: str, device: str) -> bool:
    """Whether torch's operator of this full name has a kernel for ``'CPU'`` or ``'CUDA'``."""
    import torch

    return torch._C._dispatch_has_kernel_for_dispatch_key(operator, device)


def allow_compiled_forms(count: int) -> None:
    """Let ``torch.compile`` compile a function anew for this many shapes, or more where it may."""
    import torch._dynamo

    config = torch._dynamo.config
    # Newer versions call it recompile_limit, and know both names.
    config.cache_size_limit = max(config.cache_size_limit, count)


def capture_cuda_graph(module: Any, inputs: Any) -> Callable:
    """The forward and backward pass of a module as CUDA graphs.

    Only calls of this thread must be fit for a capture. By default those of all threads must be:
    the data loader's thread that pins memory would fail, and with it the training. torch 2.13
    can't be told so where it captures a module (https://github.com/pytorch/pytorch/pull/188832).

    Args:
        module: Takes and returns tensors; it must not be used otherwise any more.
        inputs: Sample tensors, which become the memory that the graph reads.

    Raises:
        RuntimeError: Something can't be captured. All else goes on as before.
    """
    import torch

    capture, graph = torch.cuda.make_graphed_callables, torch.cuda.graph
    alone = dict(capture_error_mode='thread_local')
    options = alone if 'capture_error_mode' in inspect.signature(capture).parameters else {}
    try:
        if not options:
            torch.cuda.graph = functools.partial(graph, **alone)
        with undone_where_capture_fails():
            memory, _ = _graph_memory(torch.cuda.current_device())
            return capture(module, inputs, allow_unused_input=True, pool=memory, **options)
    finally:
        torch.cuda.graph = graph


@contextlib.contextmanager
def undone_where_capture_fails() -> Iterator[None]:
    """Restore what torch leaves behind: the capture's stream, and noise that must not be drawn."""
    import torch

    generator = torch.cuda.default_generators[torch.cuda.current_device()]
    stream, noise = torch.cuda.current_stream(), generator.clone_state()
    try:
        yield
    except BaseException:
        torch.cuda.set_stream(stream)
        generator.graphsafe_set_state(noise)
        raise


@functools.cache
def _graph_memory(device: int) -> tuple[Any, Any]:
    """The memory of a GPU that all graphs work in, one after another, and a graph that keeps it.

    torch 2.13 refuses memory whose graphs are all gone.
    """
    import torch

    memory, keeper = torch.cuda.graph_pool_handle(), torch.cuda.CUDAGraph()
    with torch.cuda.graph(keeper, pool=memory, capture_error_mode='thread_local'):
        torch.zeros(1, device=f'cuda:{device}')
    return memory, keeper
