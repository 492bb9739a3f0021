"""MMCV's multi-scale deformable attention on this package's operator, for MMDetection's models."""

from mmcv.ops import MultiScaleDeformableAttention
from mmdet.registry import HOOKS, MODELS
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import Tensor, nn

from ..utils.classes import exchange_classes
from .deformable_attention import deformable_attention


@MODELS.register_module()
class FastMultiScaleDeformableAttention(MultiScaleDeformableAttention):
    """MMCV's module with the same parameters and results, sampling by our operator.

    Under mixed precision, locations and sums stay in float32; MMCV 2.1's GPU operator has them in
    the value's type. Arguments are those of :class:`mmcv.ops.MultiScaleDeformableAttention`.
    """

    def forward(
        self,
        query: Tensor,
        key: Tensor | None = None,
        value: Tensor | None = None,
        identity: Tensor | None = None,
        query_pos: Tensor | None = None,
        key_padding_mask: Tensor | None = None,
        reference_points: Tensor | None = None,
        spatial_shapes: Tensor | None = None,
        level_start_index: Tensor | None = None,
        **kwargs,
    ) -> Tensor:
        """Attend to the value around reference points.

        Args:
            query: (Q, B, D) Q queries of width D for each of B images. With ``batch_first``, here
                and in value, identity and query_pos, B comes first.
            key: Not used, as in MMCV.
            value: (Σ H_l · W_l, B, D) tokens of all levels l. Default: the query.
            identity: What the result is added to. Default: the query.
            query_pos: Positions, which are added to the query.
            key_padding_mask: (B, Σ H_l · W_l) bool, true where the value counts as zero.
            reference_points: (B, Q, levels, 2) as (x, y) or (B, Q, levels, 4) as (cx, cy, w, h),
                levels spanning [0, 1].
            spatial_shapes: (levels, 2) as (H_l, W_l).
            level_start_index: Not used.
            **kwargs: Not used; what MMDetection hands to all kinds of attention.

        Returns:
            In the shape of the query.
        """
        value = query if value is None else value
        identity = query if identity is None else identity
        if query_pos is not None:
            query = query + query_pos
        if not self.batch_first:
            query, value = query.transpose(0, 1), value.transpose(0, 1)
        value = self.value_proj(value)
        if key_padding_mask is not None:
            value = value.masked_fill(key_padding_mask[..., None], 0)
        points = (self.num_heads, self.num_levels, self.num_points)
        offsets = self.sampling_offsets(query).unflatten(-1, (*points, 2))
        weights = self.attention_weights(query).unflatten(-1, (self.num_heads, -1)).softmax(-1)
        out = deformable_attention(
            value.unflatten(-1, (self.num_heads, -1)),
            [tuple(shape) for shape in spatial_shapes.tolist()],
            self._locations(offsets, reference_points, spatial_shapes).flatten(3, 4),
            weights,
            [self.num_points] * self.num_levels,
        )
        out = self.output_proj(out.to(value.dtype))
        if not self.batch_first:
            out = out.transpose(0, 1)
        return self.dropout(out) + identity

    def _locations(self, offsets: Tensor, references: Tensor, spatial_shapes: Tensor) -> Tensor:
        """Offsets (B, Q, heads, levels, points, 2) become locations in [0, 1]."""
        references = references[:, :, None, :, None]
        if references.shape[-1] == 2:
            pixels = spatial_shapes.flip(-1)[:, None]
            return references + offsets / pixels
        if references.shape[-1] == 4:
            centres, sizes = references.split(2, dim=-1)
            return centres + offsets / self.num_points * sizes * 0.5
        raise ValueError(
            f'reference_points must end in 2 or 4 numbers, got {references.shape[-1]} of them'
        )


def use_fast_deformable_attention(model: nn.Module) -> int:
    """Let all multi-scale deformable attention of a model run on our operator.

    MMDetection's transformer layers build MMCV's class whatever the config says. Here each such
    module becomes a :class:`FastMultiScaleDeformableAttention`. It stays the same object, with its
    parameters, names and hooks: optimisers and checkpoints notice nothing.

    Args:
        model: A model that contains such modules.

    Returns:
        How many modules of the model run on our operator now.
    """
    exchange_classes(model, {MultiScaleDeformableAttention: FastMultiScaleDeformableAttention})
    return sum(isinstance(m, FastMultiScaleDeformableAttention) for m in model.modules())


@HOOKS.register_module()
class FastDeformableAttentionHook(Hook):
    """Calls :func:`use_fast_deformable_attention` before training, validation or testing starts.

    It comes before other hooks, so that those that copy the model, such as EMA, copy the new
    modules. It keeps no state.

    Raises:
        ValueError: The model has no such attention.
    """

    priority = 'VERY_HIGH'

    def before_run(self, runner: Runner) -> None:
        count = use_fast_deformable_attention(runner.model)
        if not count:
            raise ValueError(
                'FastDeformableAttentionHook: the model has no MultiScaleDeformableAttention of '
                'MMCV: take the hook out of custom_hooks'
            )
        runner.logger.info(f'{count} modules use the deformable attention of deim_mmdet')
