"""Distillation from a frozen image model, as in RT-DETRv4 (arXiv 2510.25257)."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmdet.registry import MODELS
from torch import Tensor, nn

from ...utils.errors import MissingPackageError, UserError
from ..layers.basic import to_tokens
from .auxiliary_term import AuxiliaryTerm, EncoderView


@MODELS.register_module()
class TeacherDistillation(AuxiliaryTerm):
    r"""Pulls the encoder's tokens of the coarsest level to those of a frozen image model.

    As in the paper, a linear layer, the projector, maps the tokens that the encoder's transformer
    layer returns to the width of the teacher's patch tokens. The loss is 1 - cosine similarity,
    averaged over tokens. Its weight follows the share that the transformer layer has of the
    gradient of the whole model: it grows where the share is under a target, and falls where it is
    above.

    This was written from descriptions of the paper, without its formulas and code. Ours are these:
    the teacher's tokens are averaged over the encoder's cells, as its patches are smaller; the
    share is the ratio of Euclidean norms, averaged over an epoch; after each epoch the weight is
    multiplied by target / share, by 2 or ½ at most, unless the share is within the tolerance.
    :class:`~deim_mmdet.engine.DistillationWeightHook` measures the share; without it the weight
    stays as it is. RT-DETRv4's own numbers are weights of 5 to 20 and targets of 2 to 11 %.

    The teacher is built in the first training step, from ``teacher``. It is no submodule: neither
    optimiser nor checkpoint nor copies of the model have it, and evaluation doesn't need it.
    Projector and weight are in the checkpoint.

    Args:
        teacher: Config of a module in ``MODELS`` from normalised images (B, 3, H, W) to features
            (B, ``teacher_channels``, h, w), such as :class:`TimmTeacher`.
        in_channels: Width of the encoder's tokens.
        teacher_channels: Width of the teacher's features.
        weight: Weight of the loss in the first epoch.
        target_share: Share of the gradient's norm that the encoder's layer is to have, in (0, 1).
        tolerance: The weight stays while the share is within ``target_share`` ± ``tolerance``.
        mean: The teacher's mean of images in [0, 1], RGB. The detector's images must be in [0, 1],
            as those of D-FINE are. For images that are normalised already give 0 and an std of 1.
        std: The teacher's standard deviation of such images.

    Raises:
        ValueError: A number is out of its range.
    """

    #: Factors by which the weight may change after an epoch.
    limits = (0.5, 2.0)

    def __init__(
        self,
        teacher: dict,
        in_channels: int = 256,
        teacher_channels: int = 768,
        weight: float = 5.0,
        target_share: float = 0.1,
        tolerance: float = 0.01,
        mean: Sequence[float] = (0.485, 0.456, 0.406),
        std: Sequence[float] = (0.229, 0.224, 0.225),
    ) -> None:
        super().__init__()
        if weight <= 0 or not 0 < target_share < 1 or tolerance < 0:
            raise UserError(
                'TeacherDistillation needs weight > 0, target_share in (0, 1) and tolerance >= 0, '
                f'but got {weight}, {target_share} and {tolerance}'
            )
        self.projector = nn.Linear(in_channels, teacher_channels)
        self.register_buffer('weight', torch.tensor(float(weight)))
        self.target_share = target_share
        self.tolerance = tolerance
        for name, numbers in dict(mean=mean, std=std).items():
            numbers = torch.tensor(numbers, dtype=torch.float32).view(-1, 1, 1)
            self.register_buffer(name, numbers, persistent=False)
        self.teacher_config = teacher
        # In a tuple, so that it doesn't become a submodule.
        self._teacher: tuple[nn.Module, ...] = ()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, '_teacher': ()}

    def forward(self, view: EncoderView) -> Tensor:
        """The loss (), times its weight."""
        height, width = (side // view.stride for side in view.images.shape[-2:])
        wanted = to_tokens(F.adaptive_avg_pool2d(self._see(view.images), (height, width)))
        ours = self.projector(view.tokens)
        similarity = F.cosine_similarity(ours.float(), wanted.float(), dim=-1)
        return self.weight * (1 - similarity.mean())

    @torch.no_grad()
    def _see(self, images: Tensor) -> Tensor:
        """Features (B, C, h, w) of the teacher for the detector's images."""
        if not self._teacher:
            teacher = MODELS.build(self.teacher_config).to(images.device)
            self._teacher = (teacher.eval().requires_grad_(False),)
        [teacher] = self._teacher
        return teacher((images - self.mean) / self.std)

    @torch.no_grad()
    def follow(self, share: float) -> None:
        """Adapt the weight to the share that the encoder's layer had of the gradient, in [0, 1]."""
        if abs(share - self.target_share) <= self.tolerance:
            return
        lowest, highest = self.limits
        factor = self.target_share / share if share > 0 else highest
        self.weight *= min(max(factor, lowest), highest)


@MODELS.register_module()
class TimmTeacher(nn.Module):
    """Patch features of a vision transformer of timm, which must be installed.

    Args:
        name: Name in timm, with pre-trained weights. DINOv3's are under Meta's licence.

    Raises:
        ImportError: timm isn't installed.
    """

    def __init__(self, name: str = 'vit_base_patch16_dinov3.lvd1689m') -> None:
        super().__init__()
        try:
            import timm
        except ImportError:
            raise MissingPackageError(f'the teacher {name} needs timm: pip install timm') from None
        self.network = timm.create_model(
            name, pretrained=True, num_classes=0, dynamic_img_size=True
        )

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) to features (B, C, H / patch, W / patch)."""
        tokens = self.network.forward_features(images)[:, self.network.num_prefix_tokens :]
        sides = (
            side // patch
            for side, patch in zip(
                images.shape[-2:], self.network.patch_embed.patch_size, strict=True
            )
        )
        return tokens.transpose(1, 2).unflatten(2, tuple(sides))
