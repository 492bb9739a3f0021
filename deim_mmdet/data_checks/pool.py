"""Inspects many images in several processes; a decoder may crash any of them."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial

import cv2
from mmcv.transforms import LoadImageFromFile
from tqdm import tqdm

from ..datasets.annotation_problems import Finding
from .images import ImageTask, inspect_image

Inspect = Callable[[ImageTask], list[Finding]]


def inspect_images(
    tasks: Sequence[ImageTask], loader: LoadImageFromFile, workers: int = 0
) -> Iterator[Finding]:
    """What is found in images, in their order; progress goes to the terminal.

    A file may kill the process that reads it, by a fault of the decoder or by its size. That is a
    finding like others.

    Args:
        tasks: The images.
        loader: Transform that reads them.
        workers: Number of processes. With 0, this process reads; such a file would kill it.
    """
    inspect = partial(inspect_image, loader=loader)
    with tqdm(total=len(tasks), unit=' images', desc='Reading') as progress:
        for findings in _by_pool(tasks, inspect, workers) if workers else map(inspect, tasks):
            progress.update()
            yield from findings


def _by_pool(tasks: Sequence[ImageTask], inspect: Inspect, workers: int) -> Iterator[list[Finding]]:
    while tasks:
        done = 0
        try:
            with _started(workers) as pool:
                for findings in pool.map(inspect, tasks):
                    yield findings
                    done += 1
            return
        except BrokenProcessPool:
            # The pool can't say which file did it: it is among those that were next.
            suspects = tasks[done : done + 2 * workers + 1]
            tasks = tasks[done + len(suspects) :]
        for task in suspects:
            yield _alone(task, inspect)


def _alone(task: ImageTask, inspect: Inspect) -> list[Finding]:
    """Inspect an image in a process of its own."""
    with _started(1) as pool:
        try:
            return pool.submit(inspect, task).result()
        except BrokenProcessPool:
            says = f'{task.name} (reading it kills the process)'
            return [Finding('image_unreadable', True, says, task.name)]


def _started(workers: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(workers, initializer=cv2.setNumThreads, initargs=(0,))
