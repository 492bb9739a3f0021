"""The channels of the images: a config says them once, and they are put wherever it needs them."""

from collections.abc import Sequence

from mmcv.transforms import LoadImageFromFile
from mmdet.registry import TRANSFORMS
from mmengine.config import Config

from ..datasets import LoadImageChecked
from ..models.layers.input_channels import RGB
from ..utils.components import component_class, find_components
from ..utils.errors import UserError


def set_input_channels(
    cfg: Config | dict,
    mean: Sequence[float],
    std: Sequence[float],
    color_type: str = 'unchanged',
    imdecode_backend: str = 'cv2',
) -> None:
    """Let a config read, normalise and take images of any number of channels.

    All pipelines load images with this ``color_type``. The backbone gets ``in_channels``, the data
    preprocessor mean and std. mmdet's ``LoadImageFromFile`` stays where it reads the same, as
    ``DetInferencer`` looks for this name; ``LoadImageChecked`` replaces it for 'unchanged'.

    Args:
        cfg: A config, or the ``_base_`` of one, changed in place.
        mean: Mean of each of the C channels, in the values of the files. Three are for red, green
            and blue.
        std: Standard deviation of each channel.
        color_type: See :class:`~deim_mmdet.datasets.LoadImageChecked`: 'grayscale' for one channel
            of 8 bits, 'unchanged' for everything else, or one of these with
            '_ignore_orientation'.
        imdecode_backend: Decoder of image files; 'tifffile' for TIFFs of more than four channels
            in a page.

    Raises:
        ValueError: ``mean`` and ``std`` don't have a number for each channel, or ``color_type``
            reads another number of channels.

    Example:
        >>> _base_ = './deim_dfine_custom.py'
        >>> from deim_mmdet.engine import set_input_channels
        >>> set_input_channels(_base_, mean=[800, 900, 850, 2400], std=[400, 380, 410, 900])
    """
    channels = len(mean)
    if not channels or channels != len(std):
        raise UserError(f'mean and std must have a number for each channel, got {mean} and {std}')
    if channels != dict(unchanged=channels, grayscale=1, color=RGB).get(color_type.split('_')[0]):
        raise UserError(
            f'color_type={color_type!r} does not read {channels} channels: take '
            "color_type='unchanged', or give mean and std for the channels that it reads"
        )
    keeps_values = color_type.startswith('unchanged')
    for loader in find_components(TRANSFORMS, [*cfg.values()], LoadImageFromFile):
        loader.update(color_type=color_type, imdecode_backend=imdecode_backend)
        if keeps_values or component_class(TRANSFORMS, loader) is LoadImageChecked:
            options = ('color_type', 'imdecode_backend', 'backend_args')
            kept = {name: loader[name] for name in options if name in loader}
            loader.clear()
            loader.update(type='LoadImageChecked', channels=channels, **kept)
    model = cfg['model']
    model['backbone']['in_channels'] = channels
    model['data_preprocessor'].update(mean=[*mean], std=[*std])
    if channels == RGB:
        model['data_preprocessor']['keep_values'] = keeps_values
    else:
        model['data_preprocessor']['bgr_to_rgb'] = False
