"""Pictures of a config's data sets as inputs of deployed detectors, and the AP that these reach."""

import copy
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from mmdet.registry import DATASETS
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.evaluator import Evaluator
from mmengine.structures import InstanceData
from torch.utils.data import Dataset
from tqdm import tqdm

from ..models.layers.input_channels import RGB
from ..utils.components import dataset_configs
from ..utils.errors import UserError
from .inputs import test_set
from .runtimes import Detections

#: An image (1, C, H, W) float32 and its original (width, height) (1, 2) int64; see
#: :class:`~deim_mmdet.deployment.detector.DeployedDetector`.
Inputs = tuple[np.ndarray, np.ndarray]


def calibration_set(cfg: Config) -> Dataset:
    """The config's training set, or else its validation set, through the test pipeline.

    Args:
        cfg: A whole config.

    Raises:
        FileNotFoundError: Neither is there.
    """
    pipeline = test_set(cfg).pipeline
    looked_for = []
    for loader in ('train_dataloader', 'val_dataloader'):
        # Wrappers of training mix or repeat pictures.
        dataset = next(dataset_configs((cfg.get(loader) or {}).get('dataset')), None)
        if dataset is None:
            continue
        annotations = Path(dataset.get('data_root') or '') / (dataset.get('ann_file') or '')
        if annotations.exists():
            # In test mode no picture is left out or replaced by another one.
            changed = dict(copy.deepcopy(dataset), pipeline=pipeline, test_mode=True)
            return DATASETS.build(changed)
        looked_for.append(str(annotations))
    raise FileNotFoundError(
        'INT8 needs pictures to calibrate with: there is neither training nor validation set '
        f'({", ".join(looked_for) or "the config has none"}): set data_root'
    )


def spread(dataset: Dataset, count: int) -> list[int]:
    """Positions of up to ``count`` pictures, evenly over the whole data set."""
    count = min(count, len(dataset))
    return [position * len(dataset) // count for position in range(count)]


def read_inputs(
    dataset: Dataset,
    positions: list[int],
    size: tuple[int, int],
    doing: str,
    file_values: bool = False,
) -> Iterator[tuple[Inputs, DetDataSample]]:
    """Pictures of a data set as a deployed detector takes them, with a progress bar.

    Args:
        dataset: It gives images as mmdet's pipelines do, (C, H, W); three channels are BGR.
        positions: Which pictures.
        size: Height and width of the network's input.
        doing: What the progress bar says.
        file_values: Whether the detector takes the values of files, see
            :func:`~deim_mmdet.deployment.detector.takes_file_values`; others take [0, 1].

    Yields:
        Inputs and the data sample.

    Raises:
        ValueError: The pipeline gives images of another size than ``size``.
    """
    for position in tqdm(positions, unit=' images', desc=doing):
        packed = dataset[position]
        pixels, sample = packed['inputs'], packed['data_samples']
        if pixels.shape[1:] != size:
            raise UserError(
                f"the config's test pipeline gives {pixels.shape[1]}x{pixels.shape[2]}, the "
                f'exported model takes {size[0]}x{size[1]} (height x width): give the size by '
                '--cfg-options image_size=..., not by --size'
            )
        if len(pixels) == RGB:
            pixels = pixels.flip(0)
        images = pixels[None].float().div(1 if file_values else 255).numpy()
        yield (images, np.array([sample.ori_shape[1::-1]], dtype=np.int64)), sample


def evaluate(
    dataset: Dataset,
    evaluator: Evaluator,
    runtime: Callable[..., Detections],
    size: tuple[int, int],
    name: str,
    file_values: bool = False,
) -> dict[str, float]:
    """The figures of a deployed detector on a data set.

    Args:
        dataset: The data set; its classes are in the order of the detector's labels. See
            :func:`~deim_mmdet.engine.agreement.checked_test_set`.
        evaluator: The evaluator for it.
        runtime: The detector.
        size: Height and width of the detector's input.
        name: What the progress bar calls the detector.
        file_values: See :func:`read_inputs`.

    Returns:
        The evaluator's figures by name.
    """
    positions = list(range(len(dataset)))
    for inputs, sample in read_inputs(dataset, positions, size, name, file_values):
        (labels,), (boxes,), (scores,) = (torch.from_numpy(a) for a in runtime(*inputs))
        sample.pred_instances = InstanceData(labels=labels, bboxes=boxes, scores=scores)
        evaluator.process(data_samples=[sample.to_dict()])
    return evaluator.evaluate(len(dataset))
