"""Pairs of queries and objects: of the matching, of the union set and of denoising."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ...utils.host_reads import allowed_sync
from .targets import Targets

_FIELDS = ('images', 'queries', 'objects')


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

    # By NumPy: for many numbers, torch would wake all its threads.

    def from_query(self, first: int) -> 'Pairs':
        """The same pairs where ``first`` other queries come before."""
        return replace(self, queries=torch.from_numpy(self.queries.numpy() + first))

    def of_each_set(self, num_sets: int) -> 'Pairs':
        """Pairs that hold for all sets, again for each of ``num_sets`` sets by its index."""
        fields = [np.tile(getattr(self, name).numpy(), num_sets) for name in _FIELDS]
        fields.append(np.repeat(np.arange(num_sets), len(self)))
        return Pairs(*map(torch.from_numpy, fields))


@dataclass
class Places:
    """Where the queries and objects of P pairs lie in flattened tensors; all fields (P,) int64.

    Attributes:
        queries: Index among the B · Q queries of a set, for pairs that hold for all sets. For
            others, index among the S · B · Q queries of all sets.
        objects: Index among the B · m objects.
        sets: Index of the prediction set; ``None`` where the pairs hold for all sets.
    """

    queries: Tensor
    objects: Tensor
    sets: Tensor | None = None

    def __len__(self) -> int:
        return len(self.queries)


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
    pairs: Sequence[Sequence[Pairs]],
    counts: Sequence[int],
    shape: tuple[int, int, int],
    device: torch.device,
) -> tuple[list[Places], Tensor]:
    """Pairs and counts on the device of the model, by one copy that the host doesn't wait for.

    Args:
        pairs: Lists of pairs on the host, to be joined. Those of a list hold for all sets, or each
            for one.
        counts: Numbers that go with them.
        shape: Numbers B of images, Q of queries and m of objects that the tensors have.
        device: The device of the model.

    Returns:
        The places of the pairs of each list, and the counts (len(counts),) in float32.
    """
    images, queries, objects = shape
    rows = []
    for parts in pairs:
        fields = [[getattr(part, name).numpy() for part in parts] for name in _FIELDS]
        image, query, item = map(np.concatenate, fields)
        place = image * queries + query
        several = parts[0].sets is not None
        if several:
            index = np.concatenate([part.sets.numpy() for part in parts])
            place += index * (images * queries)
        rows.append([place, image * objects + item, *([index] if several else [])])
    arrays = [*(array for row in rows for array in row), np.array(counts)]
    packed = torch.empty(sum(map(len, arrays)), dtype=torch.int64, pin_memory=device.type == 'cuda')
    np.concatenate(arrays, out=packed.numpy())
    *moved, numbers = packed.to(device, non_blocking=True).split([len(array) for array in arrays])
    moved = iter(moved)
    return [Places(*(next(moved) for _ in row)) for row in rows], numbers.float()


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
