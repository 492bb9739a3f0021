"""Rounding errors of half precision in losses and gradients, ours and those of others.

All compute with the same weights, images and objects, and without denoising, whose noise is random.
An error is the distance to the same implementation's result in double precision, relative to that.
Rounding decides between queries and between matches that are almost equally good. To compare like
with like, selection and matching are those of double precision. On a CPU products of half precision
are computed as by a GPU, see :class:`~.half_products.HalfProducts`.
"""

import functools
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

from deim_mmdet.checkpoints.convert import find_weights, to_our_names
from deim_mmdet.checkpoints.files import read_checkpoint
from deim_mmdet.checkpoints.reference import convert_reference_state_dict
from deim_mmdet.models.task_modules import hungarian_matcher

import scipy.optimize
import torch
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import bbox_cxcywh_to_xyxy
from mmengine.config import ConfigDict
from mmengine.structures import InstanceData
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .half_products import HalfProducts
from .reference_models import build_reference
from .transformers_models import build_counterpart

# Small images have too few tokens for 300 queries.
QUERIES = 15
# Gradients of float16 need a scale.
SCALES = {torch.float16: 64.0}
PARTS = dict(encoder='neck', decoder='head', bbox_head='head')


class Batch(NamedTuple):
    """Images (B, 3, S, S), and for each image a dict of labels and boxes, as others take them."""

    images: Tensor
    targets: list[dict[str, Tensor]]

    def to(self, dtype: torch.dtype) -> 'Batch':
        """The batch with images and boxes of another type."""
        targets = [{**target, 'boxes': target['boxes'].to(dtype)} for target in self.targets]
        return Batch(self.images.to(dtype), targets)


def make_batch(images: Tensor, seed: int) -> Batch:
    """An even number of images (B, 3, S, S), float64, with five or three random objects each."""
    generator = torch.Generator().manual_seed(seed)
    targets = []
    for count in (5, 3) * (len(images) // 2):
        boxes = torch.rand(count, 4, generator=generator, dtype=torch.float64) * 0.3 + 0.05
        boxes[:, :2] += 0.3
        labels = torch.randint(80, (count,), generator=generator).to(images.device)
        boxes = boxes.to(images.device)
        targets.append(dict(labels=labels, class_labels=labels, boxes=boxes))
    return Batch(images, targets)


class Ours:
    """This package's detector of a config without denoising.

    Args:
        cfg: ``model`` of the config.
        norms_fixed: See the attribute.

    Attributes:
        model: The network.
        norms_fixed: Whether batch norms use their running statistics.
        matching: Modules that hold scipy's ``linear_sum_assignment``.
    """

    matching = (hungarian_matcher,)

    def __init__(self, cfg: ConfigDict, norms_fixed: bool = False) -> None:
        self.model, self.norms_fixed = MODELS.build(cfg), norms_fixed
        self.model.bbox_head.query_selection.num_queries = QUERIES

    def losses(self, batch: Batch, autocast: Any) -> dict[str, Tensor]:
        """Loss terms by name, computed under ``autocast``."""
        side, samples = batch.images.shape[-1], []
        for target in batch.targets:
            sample = DetDataSample(metainfo=dict(img_shape=(side, side)))
            sample.gt_instances = InstanceData(
                bboxes=bbox_cxcywh_to_xyxy(target['boxes']) * side, labels=target['labels']
            )
            samples.append(sample)
        with autocast:
            return self.model.loss(batch.images, samples)


class Reference:
    """The reference's D-FINE; like :class:`Ours`."""

    matching = ()

    def __init__(self, cfg: ConfigDict, side: int, norms_fixed: bool = False) -> None:
        self.model, self.criterion = build_reference(cfg, side)
        self.norms_fixed = norms_fixed
        decoder = self.model.decoder
        decoder.num_denoising, decoder.num_queries = 0, QUERIES
        self._anchors = decoder._generate_anchors

    def losses(self, batch: Batch, autocast: Any) -> dict[str, Tensor]:
        dtype = batch.images.dtype
        self.model.decoder._generate_anchors = functools.partial(self._anchors, dtype=dtype)
        with autocast:
            outputs = self.model(batch.images, batch.targets)
        # As the authors do.
        return self.criterion(outputs, batch.targets)

    def our_state(self) -> dict[str, Tensor]:
        """The weights under our names."""
        return convert_reference_state_dict(self.model.state_dict())


class Transformers:
    """The model of transformers; like :class:`Reference`."""

    def __init__(self, cfg: ConfigDict, norms_fixed: bool = False) -> None:
        # Otherwise the first call would import them, while functions are replaced.
        from transformers.loss import loss_for_object_detection, loss_rt_detr  # noqa: F401

        self.matching = (loss_for_object_detection,)
        self.model, self.norms_fixed = build_counterpart(cfg), norms_fixed
        self.model.config.num_denoising, self.model.config.num_queries = 0, QUERIES

    def losses(self, batch: Batch, autocast: Any) -> dict[str, Tensor]:
        with autocast:
            return self.model(pixel_values=batch.images, labels=batch.targets).loss_dict

    def our_state(self) -> dict[str, Tensor]:
        # Files have other names than the model.
        with tempfile.TemporaryDirectory() as folder:
            self.model.save_pretrained(folder)
            file = read_checkpoint(Path(folder) / 'model.safetensors')
        return to_our_names(find_weights(file))


Side = Ours | Reference | Transformers


class Choices(TorchFunctionMode):
    """Keeps which queries are selected and matched; with ``made``, makes the same choices."""

    def __init__(self, made: list | None = None) -> None:
        super().__init__()
        self.made, self._repeated = [], None if made is None else iter(made)

    def choose(self, make: Callable[[], Any]) -> Any:
        self.made.append(make() if self._repeated is None else next(self._repeated))
        return self.made[-1]

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in (torch.topk, torch.Tensor.topk) and args[0].dim() == 2:
            index = self.choose(lambda: func(*args, **kwargs).indices)
            return torch.return_types.topk((args[0].gather(1, index), index))
        return func(*args, **kwargs)


@contextmanager
def chosen(side: Side, made: list | None) -> Iterator[Choices]:
    """Context in which an implementation's choices are kept, or those of ``made`` are taken."""
    solve, choices = scipy.optimize.linear_sum_assignment, Choices(made)

    def matched(costs):
        return choices.choose(lambda: solve(costs))

    with ExitStack() as stack:
        for module in (scipy.optimize, *side.matching):
            stack.enter_context(mock.patch.object(module, 'linear_sum_assignment', matched))
        yield stack.enter_context(choices)


class Computed(NamedTuple):
    """Loss terms by name, gradients by part of the model as vectors, and the choices made."""

    terms: dict[str, float]
    gradients: dict[str, Tensor]
    choices: list


def compute(
    side: Side, batch: Batch, half: torch.dtype | None = None, choices: list | None = None
) -> Computed:
    """Losses and gradients in the type of the batch, or under autocast to ``half``.

    Args:
        side: The implementation; its weights get the type of the batch.
        batch: Images and objects, in float32 or float64.
        half: Type of autocast, if any.
        choices: Those to make, see :class:`Choices`.
    """
    device, dtype = batch.images.device.type, batch.images.dtype
    autocast = nullcontext() if half is None else torch.autocast(device, half)
    model = side.model.to(dtype).train()
    if side.norms_fixed:
        for norm in batch_norms(model):
            norm.eval()
    model.zero_grad()
    with ExitStack() as stack:

        def replace(owner: object, name: str, value: object) -> None:
            stack.enter_context(mock.patch.object(owner, name, value))

        # The reference's union set leaves the order of equally frequent pairs to the sorting.
        replace(torch, 'argsort', functools.partial(torch.argsort, stable=True))
        if dtype == torch.float64:
            # The reference has some numbers in single precision.
            replace(torch, 'float32', torch.float64)
            replace(torch.Tensor, 'float', torch.Tensor.double)
        made = stack.enter_context(chosen(side, choices))
        if device == 'cpu':
            stack.enter_context(HalfProducts())
        losses = side.losses(batch, autocast)
        scale = SCALES.get(half, 1.0)
        (sum(losses.values()) * scale).backward()
    gradients = defaultdict(list)
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            part = next(part for part in name.split('.') if part != 'model')
            gradients[PARTS.get(part, part)].append(parameter.grad.flatten().double() / scale)
    return Computed(
        {name: value.item() for name, value in losses.items()},
        {part: torch.cat(each) for part, each in gradients.items()},
        made.made,
    )


def gradient_errors(found: Computed, truth: Computed) -> dict[str, float]:
    """Norm of the difference of the gradients, relative to the true ones, by part of the model."""
    return {
        part: float((found.gradients[part] - gradient).norm() / gradient.norm())
        for part, gradient in truth.gradients.items()
    }


def batch_norms(model: nn.Module) -> list[nn.BatchNorm2d]:
    return [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]


def randomise(side: Side, batch: Batch, seed: int, one_scale: bool = False) -> None:
    """Change all weights, and let norms of fixed statistics normalise, as trained models do.

    A norm that subtracts the mean of each channel and divides by its spread enlarges rounding
    errors. In a deep network of random weights they hide the result in the end. With ``one_scale``
    norms subtract nothing, and divide all channels by their common root mean square.

    Args:
        side: The implementation, in float32.
        batch: In float32; what the norms normalise.
        seed: Of the weights.
        one_scale: Whether norms only scale; for an implementation whose norms are fixed.
    """
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in side.model.parameters():
            if parameter.requires_grad:
                # In proportion to what a weight of its layer has at first: larger networks would
                # otherwise blow rounding errors up until they hide the result.
                inputs = parameter[0].numel() if parameter.dim() > 1 else 100
                parameter.add_(torch.randn_like(parameter), alpha=0.2 * inputs**-0.5)

    def normalise(norm, args):
        if one_scale:
            # What follows sees what it will see when the norms are fixed.
            norm.eval()
            norm.running_mean.zero_()
            norm.running_var.fill_(args[0].square().mean())
        else:
            norm.running_mean.copy_(args[0].mean((0, 2, 3)))
            norm.running_var.copy_(args[0].var((0, 2, 3)))

    frozen = [m for m in side.model.modules() if 'FrozenBatchNorm' in type(m).__name__]
    frozen += batch_norms(side.model)
    hooks = [norm.register_forward_pre_hook(normalise) for norm in frozen]
    with torch.no_grad():
        side.losses(batch, nullcontext())
    for hook in hooks:
        hook.remove()
