"""CUDA graphs: a detector's work from images to predictions, launched as one.

A training step launches thousands of small kernels, each by a call of the host. A graph records
them once, forward and backward, and launches all by one call. A graph works on the same memory each
time, so that it belongs to one shape of the inputs. Denoising queries are padded to a fixed number
(:attr:`~deim_mmdet.models.layers.denoising.DenoisingQueryGenerator.padded`). Noise, matching and
losses stay outside.
"""

import logging
import time
from collections.abc import Callable
from typing import Any

import torch
from mmengine.logging import print_log
from torch import Tensor, nn

from ... import compat
from ..layers.denoising import DenoisingQueries
from ..layers.predictions import Predictions

#: Class logits and box logits of the selected queries, and predictions of all layers.
Outputs = tuple[Tensor, Tensor, Predictions]


class TensorNetwork(nn.Module):
    """A detector from images to predictions, as a function of tensors to tensors.

    Args:
        detector: A :class:`~deim_mmdet.models.detectors.DEIMDetector`.

    Attributes:
        differentiable: Names of the last outputs that have a gradient.
    """

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        self.detector = detector
        self.differentiable: set[str] = set()

    def forward(self, images: Tensor, *queries: Tensor) -> dict[str, Tensor]:
        """Outputs by name, for images (B, C, H, W) and the tensors of :func:`tensors_of`."""
        denoising = None
        if queries:
            content, logits, groups = queries
            denoising = DenoisingQueries(content, logits, groups, num_real=0, num_groups=0)
        with self.detector.lend_half_weights(images.device):
            feats = self.detector.extract_feat(images)
            selected, predictions = self.detector.bbox_head.decode(
                feats, denoising, all_layers=True
            )
        fields = {name: value for name, value in vars(predictions).items() if value is not None}
        outputs = dict(encoder_scores=selected.scores, encoder_boxes=selected.box_logits, **fields)
        self.differentiable = {name for name, each in outputs.items() if each.requires_grad}
        return outputs


def tensors_of(queries: DenoisingQueries | None) -> tuple[Tensor, ...]:
    """Content, reference boxes and groups of denoising queries; nothing where there are none."""
    return () if queries is None else (queries.content, queries.reference_logits, queries.groups)


class GraphedNetwork:
    """Runs a detector from images to predictions by a CUDA graph for each form of the inputs.

    The first batch of each form runs without a graph: what is seen once needs none. From the second
    on the form has its graph. If a capture fails, all goes on without graphs. Copies and pickles
    have no graphs.

    All graphs share their working memory. So a step must be done, backward pass included, before
    the next one begins.

    Args:
        capture: Makes a graph of a module and sample inputs; a test gives another one.
    """

    def __init__(self, capture: Callable[..., Callable] = compat.capture_cuda_graph) -> None:
        self.capture = capture
        #: By form of the inputs; None where the form was seen once.
        self.graphs: dict[tuple, tuple[TensorNetwork, Callable] | None] = {}
        self.failed = False

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), 'graphs': {}}

    def __call__(
        self, detector: nn.Module, images: Tensor, queries: DenoisingQueries | None
    ) -> Outputs:
        """Predict for images and denoising queries, with gradients.

        Args:
            detector: The detector, the same in all calls.
            images: (B, C, H, W) normalised images.
            queries: The batch's denoising queries, if any.
        """
        inputs = (images, *tensors_of(queries))
        precision = _autocast(images.device.type)
        form = (*((tuple(each.shape), each.dtype) for each in inputs), *precision.values())
        graphed = None
        if detector.training and torch.is_grad_enabled() and not self.failed:
            if form not in self.graphs:
                self.graphs[form] = None
            elif self.graphs[form] is None:
                self.graphs[form] = self._captured(detector, inputs)
            graphed = self.graphs.get(form)
        if graphed is None:
            outputs = TensorNetwork(detector)(*inputs)
        else:
            network, run = graphed
            # A graph gives all its outputs a gradient.
            outputs = {
                name: output if name in network.differentiable else output.detach()
                for name, output in run(*inputs).items()
            }
        scores, boxes = outputs.pop('encoder_scores'), outputs.pop('encoder_boxes')
        return scores, boxes, Predictions(**outputs)

    def _captured(
        self, detector: nn.Module, inputs: tuple[Tensor, ...]
    ) -> tuple[TensorNetwork, Callable] | None:
        """A graph for inputs of this form, with the module that it was made of."""
        network, device = TensorNetwork(detector), inputs[0].device.type
        # The graph keeps these, and each call copies its inputs there.
        samples = tuple(each.detach().clone().requires_grad_(each.requires_grad) for each in inputs)
        # Before a capture the network runs for real, which moves running statistics.
        buffers = [*network.buffers()]
        before = [buffer.clone() for buffer in buffers]
        begin = time.perf_counter()
        try:
            # Weights that were cast before would be missing in the graph.
            with torch.autocast(**_autocast(device), cache_enabled=False):
                run = self.capture(network, samples)
        except RuntimeError as error:
            self.failed, self.graphs = True, {}
            # Where the capture ends after an error, torch raises another one.
            first = error
            while first.__context__ is not None:
                first = first.__context__
            reason = str(first).strip().split('\n')[0]
            print_log(
                f'No CUDA graphs: the capture failed ({reason}). Training goes on without them',
                logger='current',
                level=logging.WARNING,
            )
            return None
        finally:
            compat.copy_each(buffers, before)
        sizes = ', '.join(
            f'{name} {tuple(each.shape)}'
            for name, each in zip(('images', 'denoising queries'), inputs, strict=False)
        )
        print_log(
            f'CUDA graph {sum(map(bool, self.graphs.values())) + 1}: {sizes}, captured in '
            f'{time.perf_counter() - begin:.1f} s',
            logger='current',
        )
        return network, run


def _autocast(device: str) -> dict[str, Any]:
    """Arguments of :func:`torch.autocast` that say what holds at the moment."""
    return dict(
        device_type=device,
        dtype=torch.get_autocast_dtype(device),
        enabled=torch.is_autocast_enabled(device),
    )
