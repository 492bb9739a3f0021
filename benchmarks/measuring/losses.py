"""Times the losses of several implementations, and their gradients, against each other."""

import statistics
from collections.abc import Callable, Mapping

from torch import Tensor

from .timing import CpuTimer, Spans


def time_losses(
    losses: Mapping[str, Callable[[], Tensor]],
    repeats: int,
    timer: CpuTimer,
    retain_graph: bool = False,
) -> dict[str, list[Spans]]:
    """Time losses and their gradients, turn by turn, after a turn of each that doesn't count.

    Args:
        losses: Functions that return a loss, by the names of the implementations.
        repeats: Number of turns that count.
        timer: Takes the times.
        retain_graph: Whether the losses share parts of a graph.

    Returns:
        For each turn of each implementation the times of loss and gradients.
    """
    spans = {name: [] for name in losses}
    for _ in range(1 + repeats):
        for name, function in losses.items():
            timer.mark()
            loss = function()
            timer.mark()
            loss.backward(retain_graph=retain_graph)
            timer.mark()
            spans[name].append(timer.read())
    return {name: values[1:] for name, values in spans.items()}


def figures(spans: Mapping[str, list[Spans]], device: str) -> dict[str, float]:
    """Median milliseconds of all implementations, and ratios to those of ``'ours'``.

    Args:
        spans: The times, see :func:`time_losses`.
        device: Where they were taken; on ``'cuda'`` there are figures of the host, too.
    """
    result = {}
    for prefix, clock in {'': 'device', 'host_': 'host'}.items():
        if clock == 'host' and device == 'cpu':
            continue
        for part, seconds in dict(forward=lambda span: span[0], with_backward=sum).items():
            medians = {
                name: statistics.median(seconds(getattr(span, clock)) for span in values)
                for name, values in spans.items()
            }
            for name, median in medians.items():
                result[f'{prefix}{part}_{name}_ms'] = round(1e3 * median, 1)
            ours = medians.pop('ours')
            for name, median in medians.items():
                result[f'{prefix}{part}_ratio_to_{name}'] = round(median / ours, 2)
    return result
