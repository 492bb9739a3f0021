"""The reference implementations' figures, and our models filled with the same parameters."""

import gzip
import importlib.util
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from deim_mmdet.checkpoints import convert_reference_state_dict

import mmdet.models  # noqa: F401  (registers the detectors)
import numpy as np
import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from torch import Tensor, nn

FOLDER = Path(__file__).parent / 'data' / 'golden'
# Folder of figures that are too large for the repository.
SHARED = Path(os.environ.get('DEIM_MMDET_SHARED', Path(__file__).parents[2] / 'shared')) / 'golden'
CONFIGS = Path(__file__).parent.parent / 'configs'
PARAMETERS = json.loads((FOLDER / 'parameters.json').read_text())
#: Models whose state dict is known.
NAMES = sorted(path.name[6:-8] for path in FOLDER.glob('state_*.json.gz'))

_spec = importlib.util.spec_from_file_location('golden_fill', FOLDER / 'fill.py')
_fill = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_fill)
image = _fill.image


def load(name: str) -> dict[str, np.ndarray]:
    """Arrays of ``<name>.npz``; without such a file, the test is skipped."""
    folder = FOLDER if (FOLDER / f'{name}.npz').is_file() else SHARED
    if not folder.is_dir():
        pytest.skip(f'{folder} is absent: set DEIM_MMDET_SHARED to the folder with golden/')
    with np.load(folder / f'{name}.npz') as arrays:
        return dict(arrays)


def read_json(path: Path) -> dict:
    """Content of a compressed JSON file."""
    return json.loads(gzip.decompress(path.read_bytes()))


def shapes(name: str) -> dict[str, list[int]]:
    """Shapes of the reference model's state dict, by name."""
    return read_json(FOLDER / f'state_{name}.json.gz')


def build_model(name: str) -> nn.Module:
    """Model of ``configs/<name>.py`` without pretrained weights."""
    cfg = Config.fromfile(CONFIGS / f'{name}.py').model
    cfg.backbone.init_cfg = None
    return MODELS.build(cfg)


def reference_state_dict(name: str) -> dict[str, Tensor]:
    """State dict of the reference model ``name``, filled deterministically, float64."""
    return filled_state_dict(shapes(name), reg_scale=8.0 if name.endswith('_x') else 4.0)


def filled_state_dict(
    shapes: Mapping[str, Sequence[int]], reg_scale: float = 4.0
) -> dict[str, Tensor]:
    """Tensors of the reference's names and of given shapes, filled deterministically, float64."""
    kept = dict(up=0.5, reg_scale=reg_scale)
    state = {}
    for key, shape in shapes.items():
        value = _fill.fill(key, shape)
        if key.endswith('.periods'):
            # As built, for heads of 64 channels.
            value = 100.0 ** (np.arange(16) / 16)
        elif value is None:
            value = np.full(shape, kept.get(key.rsplit('.', 1)[-1], 0.0))
        state[key] = torch.from_numpy(np.asarray(value))
    return state


def filled_model(name: str) -> nn.Module:
    """Our model with the parameters of :func:`reference_state_dict`, loaded strictly; float64."""
    model = build_model(name).double()
    model.load_state_dict(convert_reference_state_dict(reference_state_dict(name)), strict=True)
    return model
