"""The published accuracy and speed of the models, from ``model-index.yml``."""

from pathlib import Path
from typing import NamedTuple

import yaml

INDEX = Path(__file__).resolve().parents[2] / 'model-index.yml'


class PublishedPoint(NamedTuple):
    """A model's published AP on COCO val2017 and latency.

    Attributes:
        name: Name of the config.
        collection: Name of the models that make a curve with it, e.g. ``DEIM-D-FINE``.
        latency: Milliseconds an image on ``hardware``.
        ap: Box AP in percent.
        hardware: GPU, runtime and precision.
    """

    name: str
    collection: str
    latency: float
    ap: float
    hardware: str


def published_points(path: Path = INDEX) -> list[PublishedPoint]:
    """All models whose AP and latency are published.

    Args:
        path: The index; default: the checkout's.
    """
    points = []
    for model in yaml.safe_load(path.read_text(encoding='utf-8'))['Models']:
        speeds = model.get('Metadata', {}).get('inference time (ms/im)') or []
        metrics = [result.get('Metrics', {}).get('box AP') for result in model.get('Results') or []]
        if speeds and metrics and metrics[0] is not None:
            speed = speeds[0]
            hardware = f'{speed["hardware"]}, {speed["backend"]} {speed["mode"]}'
            points.append(
                PublishedPoint(
                    model['Name'], model['In Collection'], speed['value'], metrics[0], hardware
                )
            )
    return points
