"""The form of models in which a GPU runs them fastest."""

import torch
from mmdet.models import BaseDetector, SingleStageDetector
from mmdet.structures import SampleList
from torch import Tensor, nn

from ..models.dense_heads import as_instances, spanned_pixels
from ..models.layers.basic import MLP, RMSNorm
from .graphs import GraphedFunction

# The head's layers of tokens.
_OF_TOKENS = nn.Linear, nn.LayerNorm, RMSNorm


class CudaDetector(SingleStageDetector):
    """A fused detector in half precision and channels-last layout, replayed as CUDA graphs.

    It has the parts of the detector that it is made from, under the same names, and takes that
    detector's place in mmdet's loops and inferencers. :meth:`detect` replays graphs, and so do
    ``predict`` and ``test_step``, which call it. Autocast doesn't change their precision. Calls
    must follow each other on one stream of the GPU.

    Args:
        detector: A fused detector. Its parts become those of the new one.
        half: Whether to compute in half precision, see :func:`to_half`.
        graph: Whether to replay a graph for each size of the input, see :class:`GraphedFunction`.
    """

    def __init__(self, detector: nn.Module, half: bool, graph: bool) -> None:
        # The parts are there already: nothing is built of configs.
        BaseDetector.__init__(self, detector.data_preprocessor)
        self.backbone, self.bbox_head = detector.backbone, detector.bbox_head
        if detector.with_neck:
            self.neck = detector.neck
        # What mmdet's inferencers put on a detector.
        for name in ('cfg', 'dataset_meta'):
            if hasattr(detector, name):
                setattr(self, name, getattr(detector, name))
        self.graphs = GraphedFunction(self._detect, self._make_buffers) if graph else None
        # Where the graphs find the first parameter.
        self._address: int | None = None
        self._held: set[Tensor] = set()
        self._layout = torch.preserve_format
        if half:
            to_half(self)
            self._layout = torch.channels_last
        self.eval()

    def extract_feat(self, batch_inputs: Tensor) -> tuple[Tensor, ...]:
        """Feature maps of images (B, C, H, W) of any floating type."""
        return super().extract_feat(self._as_read(batch_inputs))

    @torch.no_grad()
    def detect(self, images: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Detections of a batch as tensors.

        Args:
            images: (B, C, H, W), normalised as the data preprocessor does it.
            sizes: (B, 2) width and height of each image, in whose pixels boxes are returned; on any
                device.

        Returns:
            Labels (B, N) int64, boxes (B, N, 4) as (x1, y1, x2, y2) in pixels and scores (B, N) in
            [0, 1] of N detections of each image, best first.
        """
        with torch.autocast(images.device.type, enabled=False):
            if self.graphs is None:
                return self._detect(images, sizes)
            address = next(self.backbone.parameters()).data_ptr()
            if address != self._address:
                # The parameters have moved, but the graphs read the old ones.
                self.graphs.forget()
                self._held.clear()
                self._address = address
            return self.graphs(images, sizes)

    def predict(
        self, batch_inputs: Tensor, batch_data_samples: SampleList, rescale: bool = True
    ) -> SampleList:
        """The data samples, with the detections of :meth:`detect` in ``pred_instances``.

        Args:
            batch_inputs: (B, C, H, W), normalised.
            batch_data_samples: The images' data samples.
            rescale: Whether boxes are in pixels of the original image, not of the input.
        """
        sizes = spanned_pixels(batch_data_samples, rescale)
        instances = as_instances(*self.detect(batch_inputs, sizes))
        return self.add_pred_to_datasample(batch_data_samples, instances)

    def _detect(self, images: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.bbox_head.detect(self.extract_feat(images), sizes)

    def _as_read(self, images: Tensor, copy: bool = False) -> Tensor:
        """Images in the type and layout that the backbone reads."""
        dtype = next(self.backbone.parameters()).dtype
        return images.to(dtype, memory_format=self._layout, copy=copy)

    def _make_buffers(self, images: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]:
        # A module may replace a buffer by an equal one, but graphs go on reading the old one.
        self._held.update(self.buffers())
        # Later sizes may have fractions where the first have none.
        return self._as_read(images, copy=True), sizes.to(images.device, torch.float, copy=True)


def to_half(detector: nn.Module) -> None:
    """Let a fused detector compute in half precision and channels-last, in place.

    Backbone and neck are wholly in half precision. So are the head's convolutions, linear layers
    and norms, except in its MLPs. MLPs make boxes from queries and positions from boxes; they, the
    tables of distances and all coordinates stay in single precision. Linear layers and norms of the
    head convert their inputs into the type of their own weights. Autocast would convert the weights
    anew each time, and run the norms in single precision.

    Args:
        detector: A fused detector on a GPU.
    """
    detector.backbone.half()
    if detector.with_neck:
        detector.neck.half()
    head = detector.bbox_head
    mlps = [part for part in head.modules() if isinstance(part, MLP)]
    in_single = {part for mlp in mlps for part in mlp.modules()}
    for part in head.modules():
        if isinstance(part, (nn.Conv2d, *_OF_TOKENS)) and part not in in_single:
            part.half()
        if isinstance(part, _OF_TOKENS):
            part.register_forward_pre_hook(_convert)
    detector.to(memory_format=torch.channels_last)


def _convert(layer: nn.Module, tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    dtype = next(layer.parameters()).dtype
    return tuple(tensor.to(dtype) for tensor in tensors)
