"""Warns where weights were trained with other activations than the model has.

Weights fit a model whatever its activations, and no file states them: scores would be wrong without
an error. DEIM-D-FINE has SiLU in its decoder. D-FINE, its models in transformers, and DEIM's model
that was fine-tuned from Objects365 have ReLU.
"""

from collections.abc import Mapping
from typing import Any

from mmengine.config import Config
from torch import nn

from .architectures import decoder_activation
from .files import file_name
from .published import published_file


def activation_warning(
    model: nn.Module, checkpoint: Mapping[str, Any], filename: str
) -> str | None:
    """What to say if a checkpoint and a model seem to differ in their activations.

    They do if the file has the name of a published model with another activation than the model's.
    Under other names they seem to if the backbone's norms were frozen in training, those of the
    model count batches, and the model has no ReLU: DEIM doesn't freeze them.

    Args:
        model: The detector; one without a decoder of this package gives no warning.
        checkpoint: As mmengine loads it, with this package's names.
        filename: Path or address of the file.
    """
    layers = getattr(getattr(getattr(model, 'bbox_head', None), 'decoder', None), 'layers', ())
    own = type(getattr(layers[0], 'act', None)).__name__ if len(layers) else None
    if own not in ('ReLU', 'SiLU'):
        return None
    name = file_name(filename)
    published = published_file(name)
    if published is not None:
        theirs = decoder_activation(Config.fromfile(published.config))
        if theirs == own:
            return None
        reason = f'is published as {published.config.stem} with {theirs}'
    else:
        source = checkpoint.get('state_dict', checkpoint)
        if own == 'ReLU' or not _frozen_alone(source, model.state_dict()):
            return None
        reason = 'has frozen norms in its backbone, as models with ReLU have'
    return (
        f'{name} {reason}, but the decoder of this config has {own}. Weights do not tell the '
        'activation that they were trained with. With another one scores are wrong and training '
        'starts worse: take the config of these weights, or set act in query_selection and decoder '
        'of model.bbox_head'
    )


def _frozen_alone(source: Mapping[str, Any], own: Mapping[str, Any]) -> bool:
    """Whether the norms of a checkpoint's backbone count no batches, but those of the model do."""
    counters = [n for n in own if n.startswith('backbone.') and n.endswith('num_batches_tracked')]
    statistics = any(n.startswith('backbone.') and n.endswith('running_mean') for n in source)
    return bool(counters) and statistics and not any(name in source for name in counters)
