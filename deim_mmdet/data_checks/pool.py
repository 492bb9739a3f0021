"""Inspects many images in several processes; a decoder may crash any of them."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

import cv2
from mmcv.transforms import LoadImageFromFile
from tqdm import tqdm

from ..datasets.annotation_problems import Finding
from .images import ImageTask, inspect_image

_loader: LoadImageFromFile | None = None


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
    with tqdm(total=len(tasks), unit=' images', desc='Reading') as progress:
        inspected = _by_pool(tasks, loader, workers) if workers else _here(tasks, loader)
        for findings in inspected:
            progress.update()
            yield from findings


def _here(tasks: Sequence[ImageTask], loader: LoadImageFromFile) -> Iterator[list[Finding]]:
    for task in tasks:
        yield inspect_image(task, loader)


def _by_pool(
    tasks: Sequence[ImageTask], loader: LoadImageFromFile, workers: int
) -> Iterator[list[Finding]]:
    while tasks:
        done = 0
        try:
            with ProcessPoolExecutor(workers, initializer=_start, initargs=(loader,)) as pool:
                for findings in pool.map(_inspect, tasks):
                    yield findings
                    done += 1
            return
        except BrokenProcessPool:
            # The pool can't say which file did it: it is among those that were next.
            suspects = tasks[done : done + 2 * workers + 1]
            tasks = tasks[done + len(suspects) :]
        for task in suspects:
            yield _alone(task, loader)


def _alone(task: ImageTask, loader: LoadImageFromFile) -> list[Finding]:
    """Inspect an image in a process of its own."""
    with ProcessPoolExecutor(1, initializer=_start, initargs=(loader,)) as pool:
        try:
            return pool.submit(_inspect, task).result()
        except BrokenProcessPool:
            says = f'{task.name} (reading it kills the process)'
            return [Finding('image_unreadable', True, says, task.name)]


def _start(loader: LoadImageFromFile) -> None:
    global _loader
    _loader = loader
    cv2.setNumThreads(0)


def _inspect(task: ImageTask) -> list[Finding]:
    return inspect_image(task, _loader)
