"""Pairs of queries and objects: of the matching, of the union set and of denoising."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...utils.host_reads import allowed_sync
from .targets import Targets


@dataclass
class Pairs:
    """P pairs of queries and objects; all fields are (P,) int64.

    An object may have any number of queries. A query has at most one object in a set.

    Attributes:
        images: Index of the image in the batch.
        queries: Index of the query.
        objects: Index of the object in its image.
        sets: Index of the prediction set; ``None`` where the pairs hold for all sets.
    """

    images: Tensor
    queries: Tensor
    objects: Tensor
    sets: Tensor | None = None

    def __len__(self) -> int:
        return len(self.images)

    @property
    def place(self) -> tuple[Tensor | slice, Tensor, Tensor]:
        """Index of the paired queries in stacked sets (S, B, Q, ...)."""
        return slice(None) if self.sets is None else self.sets, self.images, self.queries


def union_set(pairs: Pairs, num_queries: int) -> Pairs:
    """Union of the matchings of all sets (GO-LSD of D-FINE, arXiv 2410.13842).

    A query keeps its most frequent object. Among equals it keeps the one with the lowest index.

    Args:
        pairs: Pairs of every set, on the host.
        num_queries: Queries of an image.

    Returns:
        Pairs that hold for all sets, on the host; each query once.
    """
    if len(pairs) == 0:
        return Pairs(*(pairs.images.new_zeros(0) for _ in range(3)))
    place = pairs.images * num_queries + pairs.queries
    # The queries that have a pair, and how often each has which object.
    paired, row = place.unique(return_inverse=True)
    counts = torch.zeros(len(paired), int(pairs.objects.max()) + 1, dtype=torch.int64)
    counts.index_put_((row, pairs.objects), torch.ones_like(row), accumulate=True)
    return Pairs(paired // num_queries, paired % num_queries, counts.argmax(1))


def denoising_pairs(targets: Targets, num_groups: int) -> Pairs:
    """The positive query of each object in each denoising group, on the host.

    Args:
        targets: The objects of the batch.
        num_groups: Number of denoising groups.

    See :class:`~deim_mmdet.models.layers.denoising.DenoisingQueries` for the order of queries.
    """
    counts = torch.tensor(targets.counts)
    images, objects = (torch.arange(targets.max_count) < counts[:, None]).nonzero(as_tuple=True)
    group_start = torch.arange(num_groups)[:, None] * 2 * targets.max_count
    return Pairs(
        images=images.repeat(num_groups),
        queries=(group_start + objects).flatten(),
        objects=objects.repeat(num_groups),
    )


def to_device(
    pairs: Sequence[Pairs], counts: Sequence[int], device: torch.device
) -> tuple[list[Pairs], Tensor]:
    """Pairs and counts on the device of the model, by one copy that the host doesn't wait for.

    Args:
        pairs: Pairs on the host.
        counts: Numbers that go with them.
        device: The device of the model.

    Returns:
        The same pairs, and the counts (len(counts),) in float32.
    """
    rows = [
        torch.stack([p.images, p.queries, p.objects, p.images if p.sets is None else p.sets])
        for p in pairs
    ]
    packed = torch.cat([*(row.flatten() for row in rows), torch.tensor(counts)])
    if device.type == 'cuda':
        packed = packed.pin_memory()
    packed = packed.to(device, non_blocking=True)
    *columns, numbers = packed.split([*(row.numel() for row in rows), len(counts)])
    moved = []
    for part, column in zip(pairs, columns, strict=True):
        images, queries, objects, sets = column.view(4, len(part))
        moved.append(Pairs(images, queries, objects, None if part.sets is None else sets))
    return moved, numbers.float()


def start_reading(values: Tensor) -> Callable[[], Tensor]:
    """Begin to copy values to the host; the function returned waits for them and returns them."""
    if values.device.type != 'cuda':
        return values.cpu
    host = torch.empty_like(values, device='cpu', pin_memory=True)
    host.copy_(values, non_blocking=True)
    arrived = torch.cuda.Event()
    arrived.record()

    def read() -> Tensor:
        with allowed_sync():
            arrived.synchronize()
        return host

    return read
