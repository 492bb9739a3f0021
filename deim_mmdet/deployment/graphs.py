"""Replays a function of tensors as a CUDA graph, one for each size of its inputs.

A CUDA graph is a recording of all kernels that a function launches. To replay it takes one launch
instead of thousands. The recording has fixed addresses: inputs are copied into buffers, and outputs
are copied out. Whatever Python computes stays as it was when the graph was recorded.
"""

import copy
import warnings
from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from .. import compat

Tensors = tuple[Tensor, ...]

#: Runs before the recording, in which libraries choose kernels and caches are filled.
WARM_UP = 3


class Captured(NamedTuple):
    """A function recorded for inputs of certain sizes.

    Attributes:
        inputs: Buffers that the recording reads.
        outputs: Buffers that the recording writes.
        replay: Runs the recording: reads ``inputs`` and writes ``outputs``.
    """

    inputs: Tensors
    outputs: Tensors
    replay: Callable[[], None]


class CudaCapture:
    """Records functions as CUDA graphs, which share one pool of memory.

    They may share it since they don't run side by side, and what they return stays allocated.
    """

    def __init__(self) -> None:
        self._pool = None

    def __getstate__(self) -> dict:
        return {'_pool': None}

    def __call__(self, function: Callable[..., Tensors], inputs: Tensors) -> Captured:
        """Record ``function(*inputs)``.

        Args:
            function: It reads tensors of one GPU, and its host reads nothing from there.
            inputs: The buffers to read, on that GPU.

        Raises:
            RuntimeError: The function can't be recorded.
        """
        with torch.cuda.device(inputs[0].device):
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(WARM_UP):
                    function(*inputs)
            torch.cuda.current_stream().wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            # Meanwhile other threads, such as the one that pins batches, may call CUDA.
            options = dict(pool=self._pool, stream=stream, capture_error_mode='thread_local')
            with compat.undone_where_capture_fails(), torch.cuda.graph(graph, **options):
                outputs = function(*inputs)
            self._pool = graph.pool()
        return Captured(inputs, outputs, graph.replay)


class GraphedFunction:
    """A function of tensors that is recorded for each size of its inputs, and then replayed.

    A size of more images, or of larger ones, is recorded at its first call. Where that fails, there
    is a warning, and from then on the function runs as it is for all further sizes. Calls must
    follow each other on one stream of the GPU.

    Args:
        function: A function of tensors that returns a tuple of tensors. It runs without gradients.
        make_buffers: Copies of the inputs of a call in the form, type and place that the function
            reads them in.
        max_sizes: Number of sizes kept. Beyond that, the one that was used least recently is
            forgotten.
        capture: Records a function; default: a :class:`CudaCapture`.
    """

    def __init__(
        self,
        function: Callable[..., Tensors],
        make_buffers: Callable[..., Tensors],
        max_sizes: int = 8,
        capture: Callable[[Callable[..., Tensors], Tensors], Captured] | None = None,
    ) -> None:
        self.function, self.make_buffers, self.max_sizes = function, make_buffers, max_sizes
        self.capture = CudaCapture() if capture is None else capture
        self._kept: OrderedDict[tuple, Captured] = OrderedDict()
        self._failed = False

    def __getstate__(self) -> dict:
        # Copies record anew: graphs hold addresses.
        return vars(self) | {'_kept': OrderedDict()}

    # Buffers made in inference mode could be written to in that mode only.
    @torch.inference_mode(False)
    @torch.no_grad()
    def __call__(self, *inputs: Tensor) -> Tensors:
        """What the function returns for ``inputs``, in new tensors."""
        key = tuple(tuple(tensor.shape) for tensor in inputs)
        captured = self._kept.get(key) or self._recorded(key, inputs)
        if captured is None:
            return self.function(*inputs)
        self._kept.move_to_end(key)
        for buffer, tensor in zip(captured.inputs, inputs, strict=True):
            buffer.copy_(tensor, non_blocking=True)
        captured.replay()
        return tuple(output.clone() for output in captured.outputs)

    def forget(self) -> None:
        """Drop all recordings: to be called when the function reads other tensors than before."""
        self._kept.clear()
        # torch refuses memory whose graphs are all gone. A copy of the capture begins with its own.
        self.capture = copy.copy(self.capture)

    def _recorded(self, key: tuple, inputs: Tensors) -> Captured | None:
        """The function recorded for these inputs; None where that fails."""
        if self._failed:
            return None
        reason = ''
        try:
            captured = self.capture(self.function, self.make_buffers(*inputs))
        except RuntimeError as error:
            reason = str(error).partition('\n')[0] or type(error).__name__
        if reason:
            # An error of the function itself is raised here.
            self.function(*inputs)
            self._failed = True
            warnings.warn(
                f'The model runs without CUDA graphs: recording one failed ({reason})',
                stacklevel=3,
            )
            return None
        # After recording, which waits for the GPU: no graph is dropped while it runs.
        if len(self._kept) == self.max_sizes:
            self._kept.popitem(last=False)
        self._kept[key] = captured
        return captured
