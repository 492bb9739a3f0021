"""Options of Dense O2O's image transforms, which a config says once."""

from typing import Any

from mmdet.registry import TRANSFORMS
from mmengine.config import Config

from ..datasets.transforms import DenseO2O, DropTinyBoxes
from ..utils.components import find_components
from ..utils.errors import UserError, UserTypeError


def set_dense_o2o(cfg: Config | dict, **options: Any) -> None:
    """Set options of Dense O2O's image transforms wherever a config has these transforms.

    A config that inherits the pipelines of its base calls this function; mmengine replaces a list
    of a base by another whole list only.

    Args:
        cfg: A config, or the ``_base_`` of one, changed in place together with its variables of
            these names.
        options: ``mosaic_prob``, the share of mosaics in the dense stage; ``min_box_size``, the
            least width and height of a box in pixels.

    Raises:
        TypeError: Another option is given.
        ValueError: The config has no transform with an option.

    Example:
        >>> _base_ = ['./_base_/datasets/coco_detection.py', ...]
        >>> from deim_mmdet.engine import set_dense_o2o
        >>> set_dense_o2o(_base_, min_box_size=12, mosaic_prob=0.3)
    """
    places = dict(
        mosaic_prob=[(DenseO2O, 'mosaic_prob')],
        min_box_size=[(DenseO2O, 'min_size'), (DropTinyBoxes, 'min_size')],
    )
    if unknown := options.keys() - places.keys():
        raise UserTypeError(f'set_dense_o2o: {sorted(unknown)} must be among {sorted(places)}')
    for name, value in options.items():
        found = [
            (component, argument)
            for kind, argument in places[name]
            for component in find_components(TRANSFORMS, [*cfg.values()], kind)
        ]
        if not found:
            raise UserError(f'set_dense_o2o: the config has no transform that takes {name}')
        for component, argument in found:
            component[argument] = value
        cfg[name] = value
