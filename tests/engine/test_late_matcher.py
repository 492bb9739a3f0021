"""A training with copy-blend whose matcher changes, stopped and resumed."""

from deim_mmdet.engine import DEIMRunner
from deim_mmdet.models.losses import SetCriterion

import pytest
import toy
from mmdet.registry import MODELS
from mmengine.logging import MessageHub
from states import differences, state_of

pytestmark = pytest.mark.slow

SCORES = [0.1, 0.3, 0.2, 0.4, 0.3, 0.2, 0.2, 0.2]


@MODELS.register_module()
class MatchingToyDetector(toy.ToyDetector):
    """Notes which matcher its criterion has in each iteration."""

    seen = []

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.bbox_head.criterion = SetCriterion(late_matcher=dict(type='ScoreOverlapMatcher'))

    def loss(self, inputs, data_samples):
        late = self.bbox_head.criterion.late
        self.seen.append((MessageHub.get_current_instance().get_info('iter'), late))
        return super().loss(inputs, data_samples)


def test_a_resumed_run_has_the_matcher_and_copies_of_its_epoch(tmp_path):
    toy.write_data_set(tmp_path)

    def train(name, **options):
        augments = ('MixUp', 'CopyBlend', 'MultiScale')
        options = {
            **toy.scripted(SCORES),
            'model.type': 'MatchingToyDetector',
            'model.data_preprocessor.batch_augments': [
                dict(type=f'DenseO2O{augment}') for augment in augments
            ],
            # Published for twice as many epochs.
            'recipe.epochs': 16,
            'recipe.stages': (4, 8, 12),
            'recipe.matcher_change_epoch': 12,
            'work_dir': str(tmp_path / name),
            **options,
        }
        cfg = toy.in_process(tmp_path, name, **options)
        MatchingToyDetector.seen.clear()
        runner = DEIMRunner.from_cfg(cfg)
        runner.train()
        return runner, dict(MatchingToyDetector.seen)

    runner, whole = train('whole')
    assert runner.recipe.matcher_change_epoch == 6
    length = len(whole) // len(SCORES)
    assert whole == {iteration: iteration >= 6 * length for iteration in range(8 * length)}
    for epoch in (3, 7):
        checkpoint = str(tmp_path / 'whole' / f'epoch_{epoch}.pth')
        name = f'from_{epoch}'
        (tmp_path / name).mkdir()
        kept = tmp_path / 'whole' / 'best_augmented.pth'
        (tmp_path / name / kept.name).write_bytes(kept.read_bytes())
        _, rest = train(name, resume=True, load_from=checkpoint)
        assert rest == {i: late for i, late in whole.items() if i >= epoch * length}
        ends = (state_of(tmp_path / folder / 'epoch_8.pth') for folder in ('whole', name))
        assert not differences(*ends)
