"""A detector as one function from images to detections, as it is deployed."""

import torch
from torch import Tensor, nn

from .. import compat
from ..models.layers.input_channels import RGB, input_channels
from .fuse import fuse_for_export


class DeployedDetector(nn.Module):
    """Turns images into detections, with normalisation and post-processing.

    It has the inputs and outputs of the models that the authors of DEIM, D-FINE and RT-DETR export:
    code written for those runs this one too.

    Args:
        model: A detector with one of this package's heads; it stays as it is.
        half: Compute backbone and neck in half precision. The head and the attention of the neck
            stay in single precision: there users of TensorRT lost accuracy, see :mod:`.tensorrt`.
        letterbox: The images come with their own proportions and a padding at the right and below,
            as :class:`~deim_mmdet.datasets.transforms.letterbox.Letterbox` makes them.

    Raises:
        TypeError: The head is not one of this package's.
    """

    def __init__(self, model: nn.Module, half: bool = False, letterbox: bool = False) -> None:
        super().__init__()
        self.letterbox = letterbox
        fused = fuse_for_export(model)
        preprocessor = fused.data_preprocessor
        self.backbone, self.head = fused.backbone, fused.bbox_head
        self.neck = fused.neck if fused.with_neck else nn.Identity()
        channels = input_channels(fused)
        # OpenCV reads BGR, and so do networks whose preprocessor doesn't exchange the channels.
        self.flip_channels = channels == RGB and not compat.exchanges_channels(preprocessor)
        mean, std = _mean_and_std(preprocessor, channels)
        top = 1 if takes_file_values(fused) else 255
        self.normalise = bool((mean != 0).any() or (std != top).any())
        self.register_buffer('scale', top / std, persistent=False)
        self.register_buffer('shift', mean / std, persistent=False)
        self.feature_type = torch.float32
        if half:
            self.feature_type = torch.float16
            self.backbone.half()
            self.neck.half()
            if hasattr(self.neck, 'encoder'):
                self.neck.encoder = InSinglePrecision(self.neck.encoder)

    def forward(self, images: Tensor, orig_target_sizes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Detections of a batch.

        Args:
            images: (B, 3, H, W) float32, B images, RGB in [0, 1], resized to the network's input.
                They are stretched to it, or padded with ``letterbox``. Where
                :func:`takes_file_values` holds, (B, C, H, W) with the values of the files.
            orig_target_sizes: (B, 2) int64, (width, height) of the original images in pixels.

        Returns:
            Labels (B, N) int64, boxes (B, N, 4) as (x1, y1, x2, y2) in pixels of the original
            images, and scores (B, N) of N detections, best first.
        """
        if self.flip_channels:
            images = images.flip(1)
        if self.normalise:
            images = images * self.scale - self.shift
        feats = self.neck(self.backbone(images.to(self.feature_type)))
        logits, boxes = self.head([feat.float() for feat in feats])
        spanned = orig_target_sizes
        if self.letterbox:
            height, width = (int(side) for side in images.shape[2:])
            spanned = spanned_by_input(orig_target_sizes, (height, width))
        return self.head.postprocess(logits, boxes, spanned)


def spanned_by_input(sizes: Tensor, input_size: tuple[int, int]) -> Tensor:
    """Width and height (B, 2), in pixels of the original images, of a padded input.

    Args:
        sizes: (B, 2) width and height of the original images.
        input_size: Height and width of the input.
    """
    inputs = sizes.new_tensor(input_size[::-1]).float()
    sizes = sizes.float()
    factor = (inputs / sizes).amin(1, keepdim=True)
    # The resized image has whole pixels, and one at least.
    return inputs * sizes / (sizes * factor + 0.5).floor().clamp(min=1)


class InSinglePrecision(nn.Module):
    """Lets a module of tokens compute in single precision in a network of half precision.

    Args:
        module: The module; its parameters become float32, in place.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module.float()

    def forward(self, *tokens: Tensor) -> Tensor:
        return self.module(*(tensor.float() for tensor in tokens)).to(tokens[0].dtype)


def takes_file_values(model: nn.Module) -> bool:
    """Whether a deployed detector takes images with the values of their files, not in [0, 1].

    It does with another number of channels than three, or where three channels keep 16 bits
    (``keep_values`` of the data preprocessor).
    """
    kept = getattr(model.data_preprocessor, 'keep_values', False)
    return kept or input_channels(model) != RGB


def _mean_and_std(preprocessor: nn.Module, channels: int) -> tuple[Tensor, Tensor]:
    """Mean and deviation of the values in files, (C, 1, 1); 0 and 1 without normalisation."""
    if getattr(preprocessor, 'mean', None) is not None:
        return preprocessor.mean, preprocessor.std
    return torch.zeros(channels, 1, 1), torch.ones(channels, 1, 1)
