"""The base class of loss terms on the encoder's tokens, and what such a term sees."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor, nn

from ...utils.errors import UserError


@dataclass
class EncoderView:
    """What a training step shows to auxiliary terms.

    Attributes:
        images: (B, C, H, W) the detector's images.
        stride: Side of a token's cell in pixels.
        outputs: What the transformer layer of the neck has returned, call by call.
    """

    images: Tensor
    stride: int
    outputs: Sequence[Tensor]

    @classmethod
    @contextmanager
    def watch(cls, neck: nn.Module, images: Tensor) -> Iterator['EncoderView']:
        """A view of what ``neck.encoder`` returns within the context."""
        outputs: list[Tensor] = []
        handle = neck.encoder.register_forward_hook(
            lambda module, inputs, output: outputs.append(output)
        )
        try:
            yield cls(images, neck.feat_strides[-1], outputs)
        finally:
            handle.remove()

    @property
    def tokens(self) -> Tensor:
        """(B, N, D) tokens of the encoder, row by row: N = H / stride · W / stride.

        Raises:
            ValueError: The layer's output was not seen, or more than once.
        """
        if len(self.outputs) != 1:
            raise UserError(
                "auxiliary terms need the tokens of the neck's transformer layer, and compiled "
                'parts and CUDA graphs hide them: train without --compile and --cuda-graph'
            )
        return self.outputs[0]


class AuxiliaryTerm(nn.Module):
    """A term of :class:`SetCriterion` on the encoder's tokens, instead of on predictions.

    Its config stands among those of the other terms:
    ``criterion=dict(terms=dict(loss_mine=dict(type='MyAuxiliaryTerm')))``. It may have parameters,
    which are trained. The model must be a :class:`~deim_mmdet.models.detectors.DEIMDetector`, and
    its neck must have a transformer layer, ``encoder``.
    """

    def forward(self, view: EncoderView) -> Tensor:
        """The loss (), times its weight."""
        raise NotImplementedError
