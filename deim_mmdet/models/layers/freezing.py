"""Training of a backbone without its first stages."""

from collections.abc import Sequence

from torch import nn

from ...utils.errors import UserError


class FreezesStages(nn.Module):
    """A backbone whose first stages don't train, as mmdet's ``frozen_stages`` means it.

    Parameters of frozen parts get no gradient. Their norms use the statistics that were loaded,
    also in training. A subclass calls :meth:`freeze_stages` once it is built.
    """

    _frozen: Sequence[nn.Module] = ()

    def freeze_stages(
        self, stages: Sequence[Sequence[nn.Module | nn.Parameter]], frozen_stages: int
    ) -> None:
        """Freeze the first of ``stages``.

        Args:
            stages: The parts of the stem, of the first stage, and so on, all of the backbone.
            frozen_stages: -1 for nothing, 0 for the stem, 1 for stem and first stage, and so on.

        Raises:
            ValueError: There is no such stage.
        """
        if not -1 <= frozen_stages < len(stages):
            raise UserError(
                f'frozen_stages of {type(self).__name__} must be among -1 … {len(stages) - 1}, got '
                f'{frozen_stages}'
            )
        frozen = [part for stage in stages[: frozen_stages + 1] for part in stage]
        for part in frozen:
            part.requires_grad_(False)
        self._frozen = [part for part in frozen if isinstance(part, nn.Module)]

    def train(self, mode: bool = True) -> 'FreezesStages':
        """Switch the mode of all parts that aren't frozen."""
        super().train(mode)
        for part in self._frozen:
            part.eval()
        return self
