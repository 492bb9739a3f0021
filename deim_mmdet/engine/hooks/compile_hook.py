"""Training on compiled parts of the model."""

import os

import torch
from mmdet.registry import HOOKS
from mmengine.hooks import Hook

from ... import compat
from ...utils.files import cache_folder
from ..checks import bare_detector

#: More sizes of images, times numbers of denoising queries, than a training has.
FORMS = 256


@HOOKS.register_module()
class CompileHook(Hook):
    """Trains with backbone, neck and decoder compiled by :func:`torch.compile`, one by one.

    Each is compiled for every size of the training images, when the size first comes. This takes
    minutes. What was compiled is kept in the package's cache folder (``$DEIM_MMDET_CACHE``,
    ``~/.cache/deim_mmdet``) for the next training, or where ``$TORCHINDUCTOR_CACHE_DIR`` says.
    Selection of queries, matching and losses aren't compiled. Neither is evaluation. Results
    change by rounding only. Checkpoints stay the same.

    Args:
        options: For :func:`torch.compile`, such as ``mode='max-autotune-no-cudagraphs'``.

    Raises:
        TypeError: The model isn't a :class:`~deim_mmdet.models.detectors.DEIMDetector`.
    """

    priority = 'LOWEST'

    def __init__(self, **options) -> None:
        self.options = options

    def before_train(self, runner) -> None:
        detector = bare_detector(self, runner.model)
        folder = str(cache_folder() / 'compiled')
        folder = os.environ.setdefault('TORCHINDUCTOR_CACHE_DIR', folder)
        compat.allow_compiled_forms(FORMS)
        detector.compile_parts(**self.options)
        runner.logger.info(
            'Backbone, neck and decoder are compiled for each size of the images when it first '
            f'comes, which takes minutes; kept in {folder}'
        )

    def before_val(self, runner) -> None:
        torch.compiler.set_stance('force_eager')

    def after_val(self, runner) -> None:
        torch.compiler.set_stance('default')

    before_test, after_test = before_val, after_val
