"""A detector as one function from images to detections, as it is deployed."""

import torch
from torch import Tensor, nn

from .. import compat
from .fuse import fuse_for_export


class DeployedDetector(nn.Module):
    """Turns images into detections, with normalisation and post-processing.

    It has the inputs and outputs of the models that the authors of DEIM, D-FINE and RT-DETR export:
    code written for those runs this one too.

    Args:
        model: A detector with one of this package's heads; it stays as it is.
        half: Compute backbone and neck in half precision. The head and the attention of the neck
            stay in single precision: there users of TensorRT lost accuracy, see :mod:`.tensorrt`.
    """

    def __init__(self, model: nn.Module, half: bool = False) -> None:
        super().__init__()
        fused = fuse_for_export(model)
        preprocessor = fused.data_preprocessor
        self.backbone, self.neck, self.head = fused.backbone, fused.neck, fused.bbox_head
        # OpenCV reads BGR: a network without this exchange is trained on BGR.
        self.flip_channels = not compat.exchanges_channels(preprocessor)
        mean, std = _mean_and_std(preprocessor)
        self.normalise = bool((mean != 0).any() or (std != 255).any())
        self.register_buffer('scale', 255 / std, persistent=False)
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
            images: (B, 3, H, W), B images, RGB in [0, 1], resized to the network's input without
                keeping the aspect ratio.
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
        return self.head.postprocess(logits, boxes, orig_target_sizes)


class InSinglePrecision(nn.Module):
    """Wraps a module of tokens: it computes in single precision in a net of half precision."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module.float()

    def forward(self, *tokens: Tensor) -> Tensor:
        return self.module(*(tensor.float() for tensor in tokens)).to(tokens[0].dtype)


def _mean_and_std(preprocessor: nn.Module) -> tuple[Tensor, Tensor]:
    """Mean and deviation, (3, 1, 1) each, of values in [0, 255]; 0 and 1 without normalisation."""
    if getattr(preprocessor, 'mean', None) is not None:
        return preprocessor.mean, preprocessor.std
    return torch.zeros(3, 1, 1), torch.ones(3, 1, 1)
