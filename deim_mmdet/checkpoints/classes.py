"""Fits the class layers of a checkpoint to a model with other classes."""

import re
from collections.abc import Sequence

from torch import Tensor, nn

from .class_names import OBJECTS365_ROWS, same_classes

#: Parameters with one row for each class; the embedding's last row stands for no class.
CLASS_LAYERS = re.compile(
    r'bbox_head\.(query_selection\.score|decoder\.score_heads\.\d+|denoising\.embedding)\.'
    r'(weight|bias)'
)
_EMBEDDING = 'bbox_head.denoising.embedding.'


def stated_classes(checkpoint: dict) -> tuple[str, ...] | None:
    """Class names that a checkpoint states, in the order of its scores; None if it states none."""
    meta = checkpoint.get('meta') or {}
    # MMDetection 2 wrote 'CLASSES'.
    stated = meta.get('dataset_meta') or {'CLASSES': meta.get('CLASSES')}
    classes = stated.get('classes', stated.get('CLASSES'))
    return None if classes is None else tuple(classes)


def are_assumed(checkpoint: dict) -> bool:
    """Whether the class names of a converted checkpoint follow from their number alone."""
    return (checkpoint.get('meta') or {}).get('assumed_classes', False)


def adapt_class_layers(
    model: nn.Module, checkpoint: dict, classes: Sequence[str] | None
) -> str | None:
    """Replace the class layers of a checkpoint by the model's, where their classes differ.

    If both lists of class names are known, rows of classes with the same name in both are kept; see
    :mod:`~deim_mmdet.checkpoints.class_names` for which names are the same. Otherwise class layers
    are replaced only if the numbers of classes differ.

    Args:
        model: Detector with freshly initialised class layers.
        checkpoint: As mmengine loads it, with names as in ``model``; changed in place.
        classes: Class names of the training set, where known.

    Returns:
        A line for the log that says what was done; ``None`` if nothing.
    """
    source = checkpoint.get('state_dict', checkpoint)
    own = {
        name: value
        for name, value in model.state_dict().items()
        if CLASS_LAYERS.fullmatch(name) and name in source
    }
    if not own:
        return None
    theirs, ours = stated_classes(checkpoint) or (), tuple(classes or ())
    if len(theirs) == _count(source) and len(ours) == _count(own):
        same = theirs == ours
        shared = same_classes(ours, theirs)
    else:
        same = _count(source) == _count(own)
        shared = []
    if same:
        return None
    message = (
        f'the checkpoint has {_count(source)} classes, the model {_count(own)}: its class layers '
        'start anew, all other parameters are kept'
    )
    for name, fresh in own.items():
        source[name] = _with_shared_rows(name, fresh, source[name], shared)
    if shared:
        names = [ours[i] if ours[i] == theirs[j] else f'{ours[i]} ({theirs[j]})' for i, j in shared]
        shown = ', '.join(names[:8]) + (', …' if len(names) > 8 else '')
        message += f', and so are the rows of {len(names)} classes with the same name: {shown}'
    return message


def drop_unused_row(checkpoint: dict) -> str | None:
    """Leave out row 0 of D-FINE's weights for Objects365, which stands for no class.

    Args:
        checkpoint: Weights alone, as :func:`~deim_mmdet.checkpoints.convert.make_checkpoint` gives
            them; changed in place. Others are left alone.

    Returns:
        A line for the log that says so; ``None`` for others.
    """
    meta = checkpoint.get('meta') or {}
    if stated_classes(checkpoint) != OBJECTS365_ROWS or 'epoch' in meta:
        return None
    source = checkpoint['state_dict']
    for name in filter(CLASS_LAYERS.fullmatch, source):
        source[name] = source[name][1:]
    meta['dataset_meta'] = dict(meta.get('dataset_meta') or {}, classes=OBJECTS365_ROWS[1:])
    return (
        f'{len(OBJECTS365_ROWS)} scores are those of Objects365. The first stands for no class and '
        f'is left out, which leaves {len(OBJECTS365_ROWS) - 1} classes'
    )


def _count(state_dict: dict[str, Tensor]) -> int:
    """Number of classes, from any one of the class layers."""
    name = next(name for name in state_dict if CLASS_LAYERS.fullmatch(name))
    return len(state_dict[name]) - name.startswith(_EMBEDDING)


def _with_shared_rows(
    name: str, fresh: Tensor, source: Tensor, shared: list[tuple[int, int]]
) -> Tensor:
    """``fresh`` with rows of ``source``: the pairs ``shared`` (ours, theirs), and the padding."""
    rows = fresh.detach().to(source, copy=True)
    for ours, theirs in shared:
        rows[ours] = source[theirs]
    if name.startswith(_EMBEDDING):
        rows[-1] = source[-1]
    return rows
