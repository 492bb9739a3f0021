"""Makes all randomness of a training a function of its seed and its position."""

from deim_mmdet.utils.randomness import Purpose, derived_seed, seed_process

from mmdet.registry import HOOKS
from mmengine.dist import broadcast_object_list, get_rank
from mmengine.hooks import Hook

from ..checks import bare_model, check_counts_epochs
from .dense_o2o_schedule_hook import batch_augments, parts_with


@HOOKS.register_module()
class DerivedSeedHook(Hook):
    """Derives every random draw of training from (seed, position); no random state is carried on.

    - A sample (partners of its mosaic, crops, colours, flips) follows from seed, epoch and index,
      by ``DenseO2ODataset.set_seed``. It doesn't depend on the number of workers and on whether
      they persist.
    - Draws in the training process (mixup, copy-blend, noise of denoising queries, dropout) follow
      from seed, iteration and rank (the number of the process): generators are seeded before each
      iteration.
    - Draws that all processes share (the size of the batch) follow from seed and iteration, by
      ``DenseO2OMultiScale.set_step_seed``. The seed is that of the first process.
    - The order of the samples already follows from seed and epoch, in mmengine's
      ``DefaultSampler``. The message hub, and so each checkpoint, keeps the sampler's seed: without
      a seed in the config, a resumed run would draw another one.

    So a run that is resumed at an epoch goes on with the draws of the uninterrupted one. The seed
    is ``runner.seed``. If the config gives none, mmengine draws, saves and resumes it. This hook
    acts before all others, before training and before each of its epochs and iterations.

    Samples of a data set without ``DenseO2ODataset``, and of ``DenseO2OMosaic`` with a cache,
    depend on their worker and on what it made before. For the former a warning is logged.

    Raises:
        TypeError: The training loop doesn't count epochs.
    """

    priority = 'VERY_HIGH'

    def before_train(self, runner) -> None:
        check_counts_epochs(self, runner.train_loop)
        self._restore_sampler_seed(runner)
        augments = batch_augments(bare_model(runner.model).data_preprocessor)
        self._step_parts = list(parts_with(augments, 'set_step_seed'))
        # With ``diff_rank_seed`` in the config, each process has a seed of its own.
        seeds = [runner.seed]
        broadcast_object_list(seeds)
        (self._common_seed,) = seeds
        dataset = runner.train_dataloader.dataset
        self._parts = list(parts_with(dataset, 'set_seed'))
        if not self._parts:
            runner.logger.warning(
                'The training set draws its samples from the generators of its workers: a run '
                "that is resumed draws other ones. Wrap it in dict(type='DenseO2ODataset', "
                'dataset=..., pipeline=[...]) to have them derived from the seed'
            )
        elif len(dataset) > sum(map(len, self._parts)):
            runner.logger.warning(
                f'{type(dataset).__name__} repeats the samples of DenseO2ODataset, augmentation '
                'included: put it inside, as the dataset of DenseO2ODataset'
            )

    def before_train_epoch(self, runner) -> None:
        # Workers read it with the first sample of the epoch, which is requested after this.
        for part in self._parts:
            part.set_seed(runner.seed, runner.epoch)

    def before_train_iter(self, runner, batch_idx: int, data_batch=None) -> None:
        seed_process(runner.seed, Purpose.ITERATION, runner.iter, get_rank())
        for augment in self._step_parts:
            augment.set_step_seed(
                derived_seed(self._common_seed, Purpose.JOINT_ITERATION, runner.iter)
            )

    def _restore_sampler_seed(self, runner) -> None:
        # The loader's own ``sampler`` is a stand-in where a batch sampler was given.
        sampler = runner.train_dataloader.batch_sampler.sampler
        if not hasattr(sampler, 'seed'):
            return
        sampler.seed = runner.message_hub.get_info('sampler_seed', sampler.seed)
        runner.message_hub.update_info('sampler_seed', sampler.seed)
