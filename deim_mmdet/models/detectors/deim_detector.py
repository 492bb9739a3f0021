"""mmdet's single-stage detector that reads its losses from the device once."""

from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property

import torch
from mmdet.models import SingleStageDetector
from mmdet.registry import MODELS
from mmdet.structures import SampleList
from torch import Tensor

from ...utils.errors import UserError, UserTypeError
from ...utils.host_reads import allowed_sync
from ..dense_heads import QuerySelectionHead
from ..layers.conv_norm import BatchNorm2d, count_batches
from ..layers.half_weights import HalfWeights
from ..losses import EncoderView
from ..necks.fusion import indivisible
from .graphed import GraphedNetwork


class LossLog(MutableMapping):
    """Loss values by name, tensors () on the CPU, as mmengine's hooks expect them.

    They leave the device together, when the first is read.

    Args:
        names: Names of the values.
        values: (len(names),) values on any device.
    """

    def __init__(self, names: list[str], values: Tensor) -> None:
        self.names = names
        self.values_on_device = values
        self._values: dict[str, Tensor] | None = None

    def _read(self) -> dict[str, Tensor]:
        if self._values is None:
            with allowed_sync():
                values = self.values_on_device.cpu()
            self._values = dict(zip(self.names, values, strict=True))
        return self._values

    def __getitem__(self, name: str) -> Tensor:
        return self._read()[name]

    def _hold(self, values: dict[str, Tensor]) -> None:
        self._values, self.names = values, [*values]
        numbers = [value.item() for value in values.values()]
        self.values_on_device = self.values_on_device.new_tensor(numbers)

    def __setitem__(self, name: str, value: Tensor | float) -> None:
        self._hold({**self._read(), name: torch.as_tensor(value)})

    def __delitem__(self, name: str) -> None:
        self._hold({key: value for key, value in self._read().items() if key != name})

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


@MODELS.register_module()
class DEIMDetector(SingleStageDetector):
    """Detector of a backbone, a neck and one of this package's heads.

    The losses of a step leave the device as one tensor, when the log reads the first of them.
    mmdet's ``SingleStageDetector`` reads them one by one.

    Args:
        args: Arguments of :class:`mmdet.models.SingleStageDetector`.
        kwargs: Keyword arguments of the same class.

    Raises:
        TypeError: ``bbox_head`` isn't one of this package's heads.
        ValueError: The criterion has an auxiliary term, and the neck has no transformer layer. Or
            backbone and data preprocessor are for different numbers of channels.

    Attributes:
        graphed: What runs training from images to predictions by CUDA graphs; None where they
            aren't used. :class:`~deim_mmdet.engine.CUDAGraphHook` sets it.
        compiled: Whether backbone, neck and decoder are compiled.
    """

    graphed: GraphedNetwork | None = None
    compiled = False

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        taken = getattr(self.backbone, 'image_channels', None)
        given = getattr(self.data_preprocessor, 'channels', None)
        if given is None and taken not in (None, 3):
            # One mean and deviation for all channels don't say how many there are.
            self.data_preprocessor.channels = taken
        elif None not in (taken, given) and taken != given:
            raise UserError(
                f'model.backbone.in_channels is {taken}, and mean and std of '
                f'model.data_preprocessor, or its bgr_to_rgb, are for {given} channels: set both '
                'for the same number, e.g. by deim_mmdet.engine.set_input_channels'
            )
        if not isinstance(self.bbox_head, QuerySelectionHead):
            raise UserTypeError(
                "DEIMDetector needs one of this package's heads, DFINEHead or RTDETRHead, but "
                f'bbox_head is a {type(self.bbox_head).__name__}: take SingleStageDetector for it'
            )
        auxiliary = self.bbox_head.criterion.auxiliary_terms
        if auxiliary and not hasattr(getattr(self, 'neck', None), 'encoder'):
            raise UserError(
                f'{", ".join(auxiliary)} of criterion.terms needs a neck with a transformer layer, '
                '`encoder`: take HybridEncoder, or leave the term out'
            )
        # A teacher, or a layer of others that leaves autocast, needs all digits of the images.
        self.data_preprocessor.in_autocast_type = _is_own(self.backbone) and not auxiliary

    @cached_property
    def _half_weights(self) -> HalfWeights:
        if _is_sharded(self):
            # Its wrappers change parameters while the network runs.
            return HalfWeights([], [])
        head = self.bbox_head
        parts = [self.neck] if self.with_neck else []
        # Parts of others may run layers in single precision, whatever autocast says.
        parts = [part for part in (*parts, head.query_selection, head.decoder) if _is_own(part)]
        stages = self.backbone.children() if _is_own(self.backbone) else []
        return HalfWeights([*stages, head.input_proj, *parts], parts)

    def lend_half_weights(self, device: torch.device) -> AbstractContextManager:
        """Context in which the network has the weights that autocast would cast one by one.

        A CPU gains nothing, compiled parts cast by kernels of their own, and autocast leaves
        numbers in double precision as they are.
        """
        if device.type == 'cpu' or self.compiled or not torch.is_autocast_enabled(device.type):
            return nullcontext()
        if next(self.bbox_head.parameters()).dtype != torch.float32:
            return nullcontext()
        return self._half_weights(torch.get_autocast_dtype(device.type))

    @cached_property
    def _norms(self) -> list[BatchNorm2d]:
        return [module for module in self.modules() if isinstance(module, BatchNorm2d)]

    def static_shapes(self) -> None:
        """Let training batches of one image size have tensors of the same shapes.

        Denoising queries are padded, which doesn't change results; only the losses, which are
        computed later, follow the number of objects.
        """
        if self.bbox_head.denoising is not None:
            self.bbox_head.denoising.padded = True

    def compile_parts(self, **options) -> None:
        """Compile backbone, neck and decoder in place, each for every shape of its inputs.

        Names of parameters stay the same; copies of the detector aren't compiled.

        Args:
            options: For :func:`torch.compile`.
        """
        self.static_shapes()
        self.compiled = True
        neck = [self.neck] if self.with_neck else []
        for part in (self.backbone, *neck, self.bbox_head.decoder):
            part.compile(dynamic=False, **options)

    def extract_feat(self, batch_inputs: Tensor) -> tuple[Tensor, ...]:
        """Images (B, C, H, W) to feature maps, see mmdet's ``SingleStageDetector``.

        Raises:
            ValueError: H or W is not divisible by the largest stride of the neck. Levels of
                rounded size would cover more than the image, which would scale all boxes.
        """
        stride = max(getattr(getattr(self, 'neck', None), 'feat_strides', [1]))
        height, width = (int(side) for side in batch_inputs.shape[-2:])
        if height % stride or width % stride:
            raise indivisible(f'{width}x{height}', stride)
        return super().extract_feat(batch_inputs)

    def loss(self, batch_inputs: Tensor, batch_data_samples: SampleList) -> dict[str, Tensor]:
        """Loss terms by name.

        Args:
            batch_inputs: (B, C, H, W) normalised images.
            batch_data_samples: B samples with ``gt_instances``.

        Returns:
            () each; see :meth:`QuerySelectionHead.loss`.

        Raises:
            ValueError: The model is fused, which leaves it without a criterion.
        """
        if self.bbox_head.criterion is None:
            raise UserError('a fused model has no losses: compute them before fuse()')
        count_batches(self._norms)
        if not self.bbox_head.criterion.auxiliary_terms:
            return self._losses(batch_inputs, batch_data_samples)
        with EncoderView.watch(self.neck, batch_inputs) as view:
            return self._losses(batch_inputs, batch_data_samples, view)

    def _losses(
        self, images: Tensor, samples: SampleList, view: EncoderView | None = None
    ) -> dict[str, Tensor]:
        if self.graphed is None:
            with self.lend_half_weights(images.device):
                feats = self.extract_feat(images)
                return self.bbox_head.loss(feats, samples, view)
        targets, queries = self.bbox_head.prepare(samples, images.device)
        outputs = self.graphed(self, images, queries)
        return self.bbox_head.losses(*outputs, queries, targets, view)

    def parse_losses(self, losses: Mapping[str, Tensor]) -> tuple[Tensor, LossLog]:
        """Sum of the loss terms, and all of them for the log.

        Args:
            losses: Loss terms, () each; those without ``loss`` in their name are only logged.

        Returns:
            Their sum (), and its value with those of all terms.
        """
        terms = torch.stack([*losses.values()])
        summed = [term for name, term in losses.items() if 'loss' in name]
        loss = (terms if len(summed) == len(losses) else torch.stack(summed)).sum()
        return loss, LossLog(['loss', *losses], torch.cat([loss[None], terms]).detach())


def _is_own(part: torch.nn.Module) -> bool:
    """Whether the class of a part is one of this package."""
    return type(part).__module__.partition('.')[0] == __name__.partition('.')[0]


def _is_sharded(model: torch.nn.Module) -> bool:
    """Whether parameters of parts are spread over processes (FSDP)."""
    if not torch.distributed.is_available():
        return False
    from torch.distributed import fsdp

    # The oldest torch may have one of them only.
    names = ('FullyShardedDataParallel', 'FSDPModule')
    kinds = tuple(getattr(fsdp, name) for name in names if hasattr(fsdp, name))
    return any(isinstance(module, kinds) for module in model.modules())
