"""The numbers of a published training recipe."""

from dataclasses import dataclass

from ..utils.errors import UserError

#: Images of COCO train2017, on which the published recipes are defined.
COCO_TRAIN_IMAGES = 118287
#: The kinds of recipes, see :class:`PublishedRecipe`.
KINDS = ('deim', 'edgecrafter')


@dataclass(frozen=True)
class PublishedRecipe:
    """Numbers of a published recipe, for COCO.

    There are two kinds. DEIM's (arXiv 2412.04234, also of its baselines and of DEIMv2) keeps the
    share of the no-augmentation stage in runs of another length. From the restart on it searches
    for the best decay of the EMA: each evaluation that is no new best leads to another restart,
    with a smaller decay. EdgeCrafter's (arXiv 2603.18739) has no warm-up stage, keeps the number of
    its clean epochs in runs of any length, and restarts once.

    Args:
        epochs: Epochs of training.
        batch_size: Images per optimiser step, over all processes.
        stages: First epoch of the dense, flat and no-augmentation stage, ``(t1, t2, t3)``. A recipe
            without Dense O2O has ``(0, 0, t3)``; one without no-augmentation epochs has
            ``t3 = epochs``.
        warmup_iters: Iterations of the quadratic learning-rate warm-up.
        lr_gamma: Factor of the learning rate at the end of the cosine; 1 keeps it flat.
        ema_decay: Decay of the EMA after its warm-up, in (0, 1).
        ema_warmup_iters: Time constant of the EMA's warm-up, in iterations; 0 for none.
        ema_restart_decay: Decay of the EMA from the restart on, in (0, 1).
        train_images: Images an epoch; an epoch has ``train_images // batch_size`` iterations.
        kind: ``'deim'`` or ``'edgecrafter'``.
        restart_epoch: First epoch of the last phase. There the cosine ends, and training restarts
            from the best epoch before. Default None: t3.
        matcher_change_epoch: Epoch from which on the criterion's ``late_matcher`` matches. None for
            a recipe without.

    Raises:
        ValueError: A number is out of its range.
    """

    epochs: int
    batch_size: int
    stages: tuple[int, int, int]
    warmup_iters: int
    lr_gamma: float = 0.5
    ema_decay: float = 0.9999
    ema_warmup_iters: int = 1000
    ema_restart_decay: float = 0.9999
    train_images: int = COCO_TRAIN_IMAGES
    kind: str = 'deim'
    restart_epoch: int | None = None
    matcher_change_epoch: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, 'stages', tuple(self.stages))
        t1, t2, t3 = self.stages
        if not 0 <= t1 <= t2 <= t3 <= self.epochs:
            raise UserError(
                f'recipe: stages={self.stages} must be in order and within epochs={self.epochs}'
            )
        if self.kind not in KINDS:
            raise UserError(f'recipe: kind={self.kind!r} must be one of {KINDS}')
        if self.kind == 'edgecrafter' and t1:
            clean = self.epochs - 2
            raise UserError(
                f"recipe: kind='edgecrafter' has no warm-up stage, but stages={self.stages}: set "
                f'stages to (0, {clean // 2}, {clean}), with two clean epochs at the end'
            )
        for name, least in dict(restart_epoch=t3, matcher_change_epoch=0).items():
            epoch = getattr(self, name)
            if epoch is not None and not least <= epoch <= self.epochs:
                raise UserError(f'recipe: {name}={epoch} must be in [{least}, {self.epochs}]')
        for name in ('ema_decay', 'ema_restart_decay'):
            if not 0 < getattr(self, name) < 1:
                raise UserError(f'recipe: {name}={getattr(self, name)} must be between 0 and 1')
        for name in ('batch_size', 'lr_gamma'):
            if getattr(self, name) <= 0:
                raise UserError(f'recipe: {name}={getattr(self, name)} must be positive')
        for name in ('warmup_iters', 'ema_warmup_iters'):
            if getattr(self, name) < 0:
                raise UserError(f'recipe: {name}={getattr(self, name)} must not be negative')

    @property
    def iters_per_epoch(self) -> int:
        """Optimiser steps of an epoch."""
        return self.train_images // self.batch_size

    @property
    def last_phase(self) -> int:
        """First epoch of the last phase."""
        return self.stages[2] if self.restart_epoch is None else self.restart_epoch

    @property
    def restarts(self) -> bool:
        """Whether the recipe has a last phase, at which training restarts."""
        return self.last_phase < self.epochs

    @property
    def searches(self) -> bool:
        """Whether the last phase restarts again after an evaluation that is no new best."""
        return self.kind == 'deim'

    @property
    def dense(self) -> bool:
        """Whether the recipe has a Dense O2O stage."""
        return self.stages[1] > self.stages[0]
