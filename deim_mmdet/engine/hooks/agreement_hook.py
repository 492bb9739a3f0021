"""Makes data sets, evaluators and checkpoint of a run agree before its first image."""

from mmdet.registry import HOOKS
from mmengine.hooks import Hook
from mmengine.runner import BaseLoop

from ... import compat
from ...checkpoints.classes import are_assumed, stated_classes
from ..agreement import (
    annotation_files,
    check_evaluator,
    check_numbering,
    class_names,
    say_unnamed,
    set_class_order,
)
from ..checks import bare_model, check_classes


@HOOKS.register_module()
class AgreementHook(Hook):
    """Compares classes by name, and an evaluator's images with those of its data set.

    The model decides the order of the classes. In a new training it is that of the training set; in
    resuming, validation and test that of the checkpoint (``meta.dataset_meta``). Labels of all
    other data sets are changed to that order, whatever order their files have. Evaluators find the
    categories by name, as :class:`~deim_mmdet.evaluation.CheckedCocoMetric` does. Anything that
    can't be made to agree ends the run before its first image. ``DEIMRunner`` always has this hook.

    Raises:
        ValueError: Class names differ, are not in the order of the labels, or are not as many as
            the head's classes; or an evaluator reads other images than its data set. The message
            names both sides and the remedy.
    """

    priority = 'HIGHEST'

    def before_run(self, runner) -> None:
        trained, of_training = None, ''
        for split, loop in compat.built_loops(runner).items():
            dataset = loop.dataloader.dataset
            check_numbering(dataset)
            classes, whose = class_names(dataset), 'the first of its parts'
            if trained is not None:
                classes, whose = trained, of_training
            _renumber(runner, split, loop, classes, whose)
            check_classes(bare_model(runner.model), dataset, split)
            if split == 'training':
                trained, of_training = classes, f'the training set ({annotation_files(dataset)})'
            else:
                loop.evaluator.dataset_meta = dataset.metainfo
                check_evaluator(loop.evaluator, dataset, split)

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        loops = compat.built_loops(runner)
        if 'training' in loops and not compat.resumes(runner):
            return  # CheckpointCheckHook fits the class layers to the training set.
        theirs = stated_classes(checkpoint)
        for split, loop in loops.items():
            own = class_names(loop.dataloader.dataset)
            if own is None:
                continue
            if theirs is None:
                say_unnamed(own, 'the checkpoint holds no class names')
            elif are_assumed(checkpoint) and sorted(own) != sorted(theirs):
                say_unnamed(own, "the checkpoint holds no class names, and COCO's do not fit")
            else:
                _renumber(runner, split, loop, theirs, 'the checkpoint')


def _renumber(runner, split: str, loop: BaseLoop, classes, whose: str) -> None:
    """Give a loop's data set and evaluator, and the visualizer, the ``classes`` of ``whose``."""
    dataset = loop.dataloader.dataset
    if classes is None or not set_class_order(dataset, classes, f'the {split} data set', whose):
        return
    runner.logger.info(f'Labels of the {split} data set are numbered as in {whose}: {classes}')
    if split != 'training':
        loop.evaluator.dataset_meta = dataset.metainfo
        runner.visualizer.dataset_meta = dataset.metainfo
