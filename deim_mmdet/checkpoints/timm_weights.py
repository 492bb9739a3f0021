"""Loads pretrained weights through ``timm``, an optional dependency: ``timm://MODEL``."""

from mmengine.runner import CheckpointLoader

from ..utils.errors import CheckpointError

SCHEME = 'timm://'
COMMAND = "pip install 'deim_mmdet[dinov3]'"


@CheckpointLoader.register_scheme(prefixes=SCHEME)
def load_from_timm(filename: str, map_location=None) -> dict:
    """Load the weights of a pretrained model of timm; timm downloads and keeps them.

    Args:
        filename: ``timm://`` and a name of timm, e.g. ``timm://vit_small_patch16_dinov3.lvd1689m``.
        map_location: Not used: the weights are loaded on the CPU.

    Returns:
        A checkpoint by timm's names. :class:`~deim_mmdet.models.backbones.VisionTransformer`
        renames them while it loads.

    Raises:
        RuntimeError: timm is missing, doesn't know the model, or can't download its weights.
    """
    name = filename.removeprefix(SCHEME)
    try:
        import timm
    except ImportError as error:
        raise CheckpointError(
            f'{filename} is loaded through timm, which cannot be imported ({error}): {COMMAND}. Or '
            'fetch the file yourself and give its path instead'
        ) from None
    try:
        return dict(state_dict=timm.create_model(name, pretrained=True, num_classes=0).state_dict())
    except Exception as error:
        raise CheckpointError(
            f'timm cannot load {name}: {error}. Fetch the file yourself and give its path instead'
        ) from error
