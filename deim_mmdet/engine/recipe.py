"""The training recipe, derived from number of epochs, batch size and iterations an epoch.

A published recipe is a set of numbers for one length of training (``epochs`` on COCO) and one batch
size, see :class:`PublishedRecipe`. This module alone turns it into the numbers of another run.

There are two rules (DEIM, Table "hyper-parameters"; reference recipes):

- *Batch size.* ``k`` is batch size / published batch size. The learning rate is multiplied by
  ``k``. Everything that counts iterations (learning-rate warm-up; horizon ``1 / (1 - decay)`` and
  warm-up of the EMA, the average of the weights) is divided by ``k``.
- *Length.* A run that sees fewer images than the published one keeps each duration's *share* of
  the run: a warm-up of 2000 iterations is 0.9 % of the L recipe on COCO, and 0.9 % of a run on a
  small data set, not all of it. A longer run keeps the published durations.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from ..utils.errors import UserError
from ..utils.tables import format_table
from .published_recipe import PublishedRecipe

#: The EMA's decay becomes smaller by this after each evaluation of the last phase that is no new
#: best.
EMA_RESTART_STEP = 1e-4
#: From these numbers of iterations and training images on, DEIM was seen ahead of its baseline
#: (docs/convergence.md). With as few images as in the second pair, 1500 iterations were too few.
#: These runs started from nothing. From weights 200 iterations were too few as well, and 1500 on
#: 205 images made no difference.
SEEN_AHEAD = ((1500, 2000), (3000, 205))


@dataclass(frozen=True)
class Recipe:
    """Numbers of one training run; iterations are those of the training loop.

    ``lr_scale`` multiplies the published learning rates. The learning rate is warmed up over
    ``warmup_iters`` and is flat until ``cosine_begin``. Then it falls along a cosine to
    ``lr_gamma`` times its value at ``cosine_end``, and stays there. ``stages`` are the first epochs
    ``(t1, t2, t3)`` of the dense, flat and no-augmentation stage. Training restarts at
    ``restart_epoch``. From there on the EMA's decay is ``ema_restart_decay``, less
    ``ema_restart_step`` for each further restart; without a search over restarts this is None. From
    ``matcher_change_epoch`` on the criterion's ``late_matcher`` matches. A number that no part of
    the training uses is None.
    """

    epochs: int
    batch_size: int
    iters_per_epoch: int
    lr_scale: float
    stages: tuple[int, int, int] | None
    warmup_iters: int | None
    cosine_begin: int
    cosine_end: int
    lr_gamma: float | None
    ema_decay: float | None
    ema_warmup_iters: float | None
    ema_restart_decay: float | None
    ema_restart_step: float | None
    restart_epoch: int | None = None
    matcher_change_epoch: int | None = None


def derive_stages(published: PublishedRecipe, epochs: int) -> tuple[int, int, int]:
    """First epochs of the dense, flat and no-augmentation stage of a run of ``epochs`` epochs.

    The no-augmentation stage keeps its share of the epochs; EdgeCrafter's keeps its length. The
    dense stage keeps its share of the augmented epochs. The warm-up stage keeps its share in
    shorter runs and its length in longer ones. Every stage of the recipe has at least one epoch.

    Args:
        published: Numbers to derive from.
        epochs: Epochs of the run.

    Raises:
        ValueError: There are fewer epochs than the recipe has stages.
    """
    t1, t2, t3 = published.stages
    no_aug = published.epochs - t3
    if epochs == published.epochs:
        return published.stages
    fewest = 3 + (t1 > 0) if published.dense else 1 + (no_aug > 0)
    if epochs < fewest:
        raise UserError(
            f'max_epochs={epochs} is too short for the {fewest} stages of the recipe: '
            f'set train_cfg.max_epochs to at least {fewest}'
        )
    if published.kind == 'deim':
        no_aug = _share(no_aug, published, epochs)
    end = epochs - min(no_aug, epochs - fewest + 1)
    if not published.dense:
        return 0, 0, end
    warm_up = min(t1, _share(t1, published, epochs), end - 2)
    dense = max(1, end * (t2 - t1) // t3)
    return warm_up, min(warm_up + dense, end - 1), end


def _share(duration: int, published: PublishedRecipe, epochs: int) -> int:
    """The share of a run that a published duration in epochs has, at least one epoch of it."""
    return max(1, round(duration * epochs / published.epochs)) if duration else 0


def derive_restart_epoch(published: PublishedRecipe, epochs: int) -> int:
    """First epoch of the last phase of a run.

    The phase keeps its share of the epochs, and doesn't begin before the no-augmentation stage.

    Args:
        published: Numbers to derive from.
        epochs: Epochs of the run.
    """
    if epochs == published.epochs:
        return published.last_phase
    t3 = derive_stages(published, epochs)[2]
    if published.last_phase == published.stages[2]:
        return t3
    return max(t3, epochs - _share(published.epochs - published.last_phase, published, epochs))


def derive_matcher_change(published: PublishedRecipe, epochs: int) -> int | None:
    """Epoch from which on the late matcher acts; None for a recipe without one.

    The late matcher keeps its share of the run; in a run of another length than the published one
    it has at least one epoch.

    Args:
        published: Numbers to derive from.
        epochs: Epochs of the run.
    """
    change = published.matcher_change_epoch
    if change is None or epochs == published.epochs:
        return change
    return min(epochs - 1, _share(change, published, epochs))


def cosine_epochs(stages: tuple[int, int, int], restart_epoch: int) -> tuple[int, int]:
    """Epochs at whose beginning the learning rate starts to fall, and has fallen."""
    # Without a dense stage the rate stays as it is up to its end.
    return (stages[1] if stages[1] > stages[0] else restart_epoch), restart_epoch


def with_stages(recipe: Recipe, stages: tuple[int, int, int]) -> Recipe:
    """A recipe with stages of the config's own; the learning rate and the restart follow them.

    A restart later than the no-augmentation stage stays where it is, if it still is later.
    """
    late = recipe.restart_epoch > recipe.stages[2]
    restart_epoch = max(stages[2], recipe.restart_epoch) if late else stages[2]
    begin, end = (each * recipe.iters_per_epoch for each in cosine_epochs(stages, restart_epoch))
    return replace(
        recipe, stages=stages, restart_epoch=restart_epoch, cosine_begin=begin, cosine_end=end
    )


def derive_recipe(
    published: PublishedRecipe,
    epochs: int,
    batch_size: int,
    iters_per_epoch: int,
    accumulation: int = 1,
    scale_by_batch: bool = True,
) -> Recipe:
    """Recipe of a run of another length or batch size than the published one.

    Args:
        published: Numbers to derive from.
        epochs: Epochs of the run.
        batch_size: Images per optimiser step, over all processes and accumulated iterations.
        iters_per_epoch: Iterations of the training loop in an epoch.
        accumulation: Iterations of the training loop that make one optimiser step.
        scale_by_batch: Whether to apply the batch-size rule; the length rule always holds.

    Raises:
        ValueError: The run is too short for its stages, or a number isn't positive.
    """
    for name, value in dict(
        epochs=epochs, batch_size=batch_size, iters_per_epoch=iters_per_epoch
    ).items():
        if value <= 0:
            raise UserError(f'recipe: {name}={value} must be positive')
    scale = batch_size / published.batch_size if scale_by_batch else 1.0
    published_iters = published.epochs * published.iters_per_epoch
    # Both are relative to the published run, and exactly 1 for it.
    length = epochs * iters_per_epoch * scale / accumulation / published_iters
    stretch = min(1.0, length) / scale * accumulation

    stages = derive_stages(published, epochs)
    restart_epoch = derive_restart_epoch(published, epochs)
    cosine_begin, cosine_end = cosine_epochs(stages, restart_epoch)

    def stretched(decay: float) -> float:
        # This is 1 - 1 / horizon, written so that the published decay comes back to the last bit. A
        # horizon under an iteration means no averaging.
        return max(0.0, 1 - (1 - decay) / stretch)

    return Recipe(
        epochs=epochs,
        batch_size=batch_size,
        iters_per_epoch=iters_per_epoch,
        lr_scale=scale,
        stages=stages,
        warmup_iters=round(published.warmup_iters * stretch),
        cosine_begin=cosine_begin * iters_per_epoch,
        cosine_end=cosine_end * iters_per_epoch,
        lr_gamma=published.lr_gamma,
        ema_decay=stretched(published.ema_decay),
        ema_warmup_iters=published.ema_warmup_iters * stretch,
        ema_restart_decay=stretched(published.ema_restart_decay),
        ema_restart_step=EMA_RESTART_STEP / stretch if published.searches else None,
        restart_epoch=restart_epoch,
        matcher_change_epoch=derive_matcher_change(published, epochs),
    )


def format_recipe(published: PublishedRecipe, recipe: Recipe, lr: float) -> str:
    """Table of the published numbers and the numbers in force, for the log.

    Args:
        published: The published numbers.
        recipe: The numbers in force; the table says "not used" for None.
        lr: Learning rate for the published batch size.
    """
    in_force = f'{lr * recipe.lr_scale:.4g} (x {recipe.lr_scale:.4g})'

    def row(title: str, name: str, form: Callable[[Any, int], str] = '{0}'.format) -> list[str]:
        """The numbers of a name; ``form`` gets a number and all iterations of its run."""
        cells = [title]
        for numbers in (published, recipe):
            value = getattr(numbers, name)
            iterations = numbers.epochs * numbers.iters_per_epoch
            cells.append('not used' if value is None else form(value, iterations))
        return cells

    def share(count: float, iterations: int) -> str:
        return f'{count:.6g} ({100 * count / iterations:.2g} %)'

    def stages(epochs: tuple[int, int, int], _: int) -> str:
        return ', '.join(map(str, epochs))

    rows = [
        ['', 'published', 'this run'],
        row('epochs', 'epochs'),
        row('images per optimiser step', 'batch_size'),
        row('iterations an epoch', 'iters_per_epoch'),
        row('iterations', 'epochs', '{1}'.format),
        ['learning rate', f'{lr:.4g}', in_force],
        row('learning-rate warm-up, iterations', 'warmup_iters', share),
        row('learning rate at the end', 'lr_gamma', 'x {0:g}'.format),
        row('first epoch of dense, flat, no-augmentation stage', 'stages', stages),
    ]
    # Few recipes have these two.
    if published.restart_epoch is not None:
        rows.append(row('epoch of the restart', 'restart_epoch'))
    if published.matcher_change_epoch is not None:
        rows.append(row('first epoch of the late matcher', 'matcher_change_epoch'))
    decay = '{0:.6g}'.format
    rows.append(row('EMA decay', 'ema_decay', decay))
    rows.append(row('EMA warm-up, iterations', 'ema_warmup_iters', share))
    if published.restarts:
        rows.append(row('EMA decay from the restart on', 'ema_restart_decay', decay))
        if published.searches:
            step = recipe.ema_restart_step
            title = 'less for each evaluation of it that is no new best'
            rows.append([title, EMA_RESTART_STEP, 'not used' if step is None else f'{step:.3g}'])
    return format_table(rows)


def regime_note(recipe: Recipe, images: int) -> str | None:
    """A warning where Dense O2O has fewer iterations or images than where it was seen to pay.

    Args:
        recipe: The numbers of the run.
        images: Number of training images.
    """
    dense = recipe.stages is not None and recipe.stages[1] > recipe.stages[0]
    total = recipe.epochs * recipe.iters_per_epoch
    if not dense or any(total >= iters and images >= least for iters, least in SEEN_AHEAD):
        return None
    seen = ', or '.join(f'{iters} iterations on {least} images' for iters, least in SEEN_AHEAD)
    return (
        f'This run has {total} iterations and {images} images. Dense O2O was seen to pay from '
        f'{seen} on, from nothing. In shorter runs it cost AP or gained none, from weights too. If '
        'in doubt, compare with a run with MAL alone (recipe=dict(stages=(0, 0, t3)) instead of '
        'stages=(t1, t2, t3)). See docs/convergence.md'
    )
