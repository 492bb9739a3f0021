"""The runner: derives the training recipe, checks its input, saves checkpoints atomically."""

import copy
from pathlib import Path

from mmengine.config import Config
from mmengine.device import get_device
from mmengine.dist import is_distributed, is_main_process
from mmengine.hooks import EMAHook
from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapper
from mmengine.registry import RUNNERS
from mmengine.runner import BaseLoop, EpochBasedTrainLoop, Runner
from torch import nn
from torch.utils.data import DataLoader

from .. import compat
from ..checkpoints.activations import activation_warning
from ..checkpoints.loading import SCHEME
from ..utils.errors import UserError, UserTypeError
from ..utils.files import write_text
from .agreement import named_categories
from .apply_recipe import apply_recipe
from .checks import (
    bare_model,
    check_fills_a_batch,
    check_object_counts,
    check_single,
    check_single_optimizer,
)
from .devices import laid_out, loader_options, optimizer_options, set_precision, wrapper_options
from .faults import check_writable, describe_damage, explained_faults, find_resumable
from .hooks import AgreementHook, DenseO2OScheduleHook, EMARestartHook, NonFiniteLossHook
from .image_size import apply_image_size
from .processes import init_gloo, naming_lost_processes, wait_for_gloo_threads
from .published_recipe import PublishedRecipe
from .recipe import Recipe, derive_recipe, format_recipe, regime_note
from .resuming import (
    apply_settings,
    current_settings,
    group_settings,
    report_changes,
    saved_settings,
    schedule_states,
)
from .saving import save_whole


# In mmengine's own registry, where both its tools and mmdet's find it.
@RUNNERS.register_module()
class DEIMRunner(Runner):
    """mmengine's ``Runner`` for configs with a published ``recipe``.

    *Recipe.* Before training it derives the run's numbers
    (:func:`~deim_mmdet.engine.recipe.derive_recipe`) from ``train_cfg.max_epochs``, the joint batch
    size and the iterations of an epoch. It gives them to the optimiser (learning rates),
    ``FlatCosineLR``, ``ExpWarmupEMAHook``, ``EMARestartHook`` and ``DenseO2OScheduleHook``. A
    number that the config gives to one of these itself is left alone. A table shows the published
    numbers and those in force. ``auto_scale_lr`` holds the published batch size and switches the
    rule for batch sizes; mmengine's own scaling isn't applied on top. Without ``recipe`` in the
    config nothing is derived. A resumed run takes all numbers from its own config, see
    :mod:`~deim_mmdet.engine.resuming`.

    *Size.* It puts the config's ``image_size`` wherever the config needs it, see
    :func:`~deim_mmdet.engine.image_size.set_image_size`.

    *Checks.* Before the first iteration it refuses images with more objects than queries. By
    :class:`~deim_mmdet.engine.AgreementHook` it refuses classes and evaluators that don't fit the
    data sets and the checkpoint. ``CheckedCocoMetric`` takes the place of ``CocoMetric``.

    *Checkpoints.* It loads checkpoints of the reference and of transformers like its own, and gives
    the reason where one can't be loaded. A killed run leaves no half-written checkpoint. A fault of
    the machine (a full disk, a killed data-loader worker, a damaged checkpoint, a lost process)
    ends with one message, or training goes on; see :mod:`~deim_mmdet.engine.faults`.

    *Devices.* On a GPU it lays out convolutions and computes in TF32 as ``env_cfg`` says, and the
    optimiser is fused. Where mmengine finds no accelerator of any kind, it trains on the CPU. Then
    ``--launcher`` uses gloo, ``--amp`` uses bfloat16, there is no SyncBN, and the model has the
    form of :func:`~deim_mmdet.deployment.cpu.optimize_for_cpu`. See
    :mod:`~deim_mmdet.engine.devices`.
    """

    #: The numbers in force, from the start of training on; None without a recipe in the config.
    recipe: Recipe | None = None

    #: See :func:`~deim_mmdet.engine.saving.let_save_whole`.
    saves_whole = True

    def __init__(self, model, work_dir: str, *args, **kwargs) -> None:
        check_writable(work_dir)
        super().__init__(model, work_dir, *args, **kwargs)

    @classmethod
    def from_cfg(cls, cfg: Config | dict) -> 'DEIMRunner':
        """Build a runner as mmengine does, from a config whose parts follow its ``image_size``.

        Raises:
            ValueError: See :func:`~deim_mmdet.engine.image_size.set_image_size`.
        """
        cfg = copy.deepcopy(cfg)
        apply_image_size(cfg)
        return super().from_cfg(cfg)

    def setup_env(self, env_cfg: dict) -> None:
        # mmengine's own initialisation (0.10.7) always selects a CUDA device.
        if self.distributed and not is_distributed() and get_device() == 'cpu':
            init_gloo(self.launcher, env_cfg.get('dist_cfg', {}).get('timeout', 1800))
        super().setup_env(env_cfg)
        set_precision(get_device(), env_cfg)
        self._env_cfg = env_cfg

    def build_model(self, model: nn.Module | dict) -> nn.Module:
        return laid_out(super().build_model(model), get_device(), self._env_cfg)

    def register_hooks(
        self, default_hooks: dict | None = None, custom_hooks: list | None = None
    ) -> None:
        super().register_hooks(default_hooks, custom_hooks)
        if not any(isinstance(hook, AgreementHook) for hook in self.hooks):
            self.register_hook(AgreementHook())
        for kind in (EMAHook, DenseO2OScheduleHook, EMARestartHook, NonFiniteLossHook):
            check_single(self.hooks, kind)

    @staticmethod
    def build_dataloader(dataloader: DataLoader | dict, *args, **kwargs) -> DataLoader:
        if isinstance(dataloader, dict):
            dataloader = loader_options(dataloader, get_device())
        return Runner.build_dataloader(dataloader, *args, **kwargs)

    def call_hook(self, fn_name: str, **kwargs) -> None:
        super().call_hook(fn_name, **kwargs)
        if fn_name in ('before_train_epoch', 'before_val_epoch', 'before_test_epoch'):
            # The data loader forks its workers next.
            wait_for_gloo_threads()

    @naming_lost_processes()
    def val(self) -> dict:
        return super().val()

    @naming_lost_processes()
    def test(self) -> dict:
        return super().test()

    def wrap_model(self, model_wrapper_cfg: dict | None, model: nn.Module) -> nn.Module:
        device = get_device()
        if self.distributed and not is_model_wrapper(model):
            if device == 'cpu' and self.cfg.pop('sync_bn', None):
                self.logger.info('No SyncBN on a CPU: every process normalises by its own batch')
            find_unused = self.cfg.get('find_unused_parameters', False)
            model_wrapper_cfg = wrapper_options(model_wrapper_cfg, device, find_unused)
        return super().wrap_model(model_wrapper_cfg, model)

    def build_optim_wrapper(self, optim_wrapper):
        options = optimizer_options(optim_wrapper, get_device())
        built = super().build_optim_wrapper(options)
        check_single_optimizer(self, built)
        return built

    def build_evaluator(self, evaluator):
        return super().build_evaluator(named_categories(evaluator))

    def build_train_loop(self, loop) -> BaseLoop:
        """Build the loop as mmengine does, and check the training set.

        Raises:
            ValueError: The set has fewer images than a batch, or an image with more objects than
                the head has queries.
        """
        built = super().build_train_loop(loop)
        check_object_counts(bare_model(self.model), built.dataloader.dataset)
        check_fills_a_batch(built.dataloader)
        return built

    def scale_lr(self, optim_wrapper: OptimWrapper, auto_scale_lr: dict | None = None) -> None:
        """Derive and apply the recipe; mmengine calls this once loop and optimiser are built.

        Raises:
            ValueError: The recipe is malformed or the run too short for it.
            TypeError: The training loop doesn't count epochs.
        """
        if self.cfg.get('recipe') is None:
            super().scale_lr(optim_wrapper, auto_scale_lr)
            return
        if not isinstance(self.train_loop, EpochBasedTrainLoop):
            raise UserTypeError(
                f'the recipe counts epochs, but the training loop is '
                f"{type(self.train_loop).__name__}: set train_cfg=dict(type='EpochBasedTrainLoop', "
                'max_epochs=...), or recipe=None with schedulers and hooks of your own'
            )
        published = self._published_recipe(auto_scale_lr or {})
        settings = current_settings(self)
        derived = derive_recipe(
            published,
            epochs=settings['epochs'],
            batch_size=settings['batch_size'],
            iters_per_epoch=settings['iters_per_epoch'],
            accumulation=settings['accumulation'],
            scale_by_batch=auto_scale_lr.get('enable', False),
        )
        self.recipe = apply_recipe(self, derived)
        lr = self.cfg.optim_wrapper.optimizer.lr
        self.logger.info('Recipe\n' + format_recipe(published, self.recipe, lr))
        if note := regime_note(self.recipe, len(self.train_dataloader.dataset)):
            self.logger.warning(note)

    def _published_recipe(self, auto_scale_lr: dict) -> PublishedRecipe:
        batch_size = auto_scale_lr.get('base_batch_size')
        if batch_size is None:
            raise UserError(
                'a config with a recipe needs auto_scale_lr=dict(enable=True, '
                'base_batch_size=...), the batch size that the recipe was published for'
            )
        try:
            return PublishedRecipe(batch_size=batch_size, **self.cfg.recipe)
        except TypeError as error:
            raise UserError(f'recipe={dict(self.cfg.recipe)}: {error}') from None

    def load_checkpoint(self, filename: str, *args, **kwargs) -> dict:
        """Load a checkpoint as mmengine does; one of the reference or transformers is converted.

        Args:
            filename: Path or ``https://`` address.
            args: Further arguments of mmengine's method.
            kwargs: Keyword arguments of mmengine's method.

        Raises:
            FileNotFoundError: There is no such file.
            RuntimeError: The file can't be downloaded, is damaged, or holds a type that isn't
                allowed.
            ValueError: Its parameters are not the model's.
        """
        checkpoint = super().load_checkpoint(f'{SCHEME}{filename}', *args, **kwargs)
        if warning := activation_warning(bare_model(self.model), checkpoint, filename):
            self.logger.warning(warning)
        return checkpoint

    def train(self) -> nn.Module:
        """Train as mmengine does.

        Raises:
            RunFault: See :func:`~deim_mmdet.engine.faults.explained_faults`. It is a
                :class:`LostProcessError` if another process of the run is lost.
            ValueError: The config asks for a compiled training step.
        """
        if self.cfg.get('compile'):
            raise UserError(
                f'compile={self.cfg.compile} compiles the whole training step, and torch.compile '
                'fails on it: the number of denoising queries follows from the objects of each '
                'batch. Leave it out of the config for training; --compile or '
                "custom_hooks=[..., dict(type='CompileHook')] compiles the parts that it can"
            )
        with naming_lost_processes(), explained_faults(self.work_dir):
            return super().train()

    def load_or_resume(self) -> None:
        """Load or resume a checkpoint; if the last one is damaged, take an intact one.

        Raises:
            RunFault: There are checkpoints to resume from, but none is intact.
        """
        if compat.looks_for_checkpoint(self):
            path, damage = find_resumable(self.work_dir)
            if damage:
                self.logger.warning(
                    f'damaged: {describe_damage(damage)}. Going on from {path}, the latest '
                    'checkpoint that is intact'
                )
                if is_main_process():
                    write_text(Path(self.work_dir) / 'last_checkpoint', str(path))
            compat.resume_from(self, None if path is None else str(path))
        super().load_or_resume()
        trains = 'training' in compat.built_loops(self)
        if trains and isinstance(self.optim_wrapper, OptimWrapper):
            report_changes(self, saved_settings(self))

    def resume(self, filename: str, *args, **kwargs) -> None:
        """Resume from a checkpoint, and go on with the numbers of the present config.

        Args:
            filename: Path or ``https://`` address.
            args: Further arguments of mmengine's method.
            kwargs: Keyword arguments of mmengine's method.

        Raises:
            ValueError: The checkpoint is of another model or optimiser.
        """
        follows = isinstance(self.optim_wrapper, OptimWrapper)
        if follows:
            schedules = schedule_states(self)
            groups = group_settings(self.optim_wrapper)
        super().resume(filename, *args, **kwargs)
        if follows:
            apply_settings(self, groups, schedules)

    def save_checkpoint(self, out_dir: str, filename: str, *args, **kwargs) -> None:
        """Save a checkpoint as mmengine does, by :func:`~deim_mmdet.engine.saving.save_whole`."""
        save_whole(super().save_checkpoint, self, out_dir, filename, *args, **kwargs)
