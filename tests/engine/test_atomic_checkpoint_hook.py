"""The hook alone, under mmengine's own runner."""

import re
import shutil

from deim_mmdet.checkpoints.files import read_checkpoint
from deim_mmdet.engine.checks import evaluates_after

import pytest
import torch
from mmdet.evaluation import MultiDatasetsEvaluator
from mmengine.evaluator import BaseMetric
from mmengine.fileio import LocalBackend
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch.utils.data import DataLoader


class Line(BaseModel):
    def __init__(self):
        super().__init__()
        self.slope = torch.nn.Parameter(torch.ones(1))

    def forward(self, inputs, mode):
        if mode == 'loss':
            return dict(loss=(self.slope * inputs).sum())
        return [dict(slope=self.slope.item())]


class Zero(BaseMetric):
    def process(self, data_batch, data_samples):
        self.results.append(0)

    def compute_metrics(self, results):
        return dict(score=0.0)


class Rising(BaseMetric):
    """The slope, which each step lets fall, with the sign changed."""

    def process(self, data_batch, data_samples):
        self.results.append(-data_samples[0]['slope'])

    def compute_metrics(self, results):
        return dict(score=results[0])


def build(tmp_path, name, train_cfg=None, evaluator=None, save_best=None, keep=1, **options):
    train_cfg = {'by_epoch': True, **(train_cfg or dict(max_epochs=2))}
    numbers = [dict(inputs=torch.ones(1)) for _ in range(2)]
    loader = DataLoader(numbers, collate_fn=lambda samples: samples[0])
    return Runner(
        Line(),
        str(tmp_path),
        train_dataloader=loader,
        val_dataloader=loader,
        train_cfg=train_cfg,
        val_cfg=dict(),
        val_evaluator=evaluator or [Zero()],
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)),
        default_hooks=dict(
            checkpoint=dict(
                type='deim_mmdet.engine.AtomicCheckpointHook',
                interval=1,
                by_epoch=train_cfg['by_epoch'],
                max_keep_ckpts=keep,
                save_best=save_best,
                rule='greater',
            )
        ),
        experiment_name=name,
        **options,
    )


@pytest.fixture
def runner(tmp_path, request):
    return build(tmp_path, request.node.name, getattr(request, 'param', None))


def test_a_whole_checkpoint_remains_wherever_writing_stops(runner, tmp_path, monkeypatch):
    """While the second one is written, the first is the only one that there is."""
    written = []

    def stop_half_way(self, content, path):
        written.append(path)
        if len(written) == 2:
            with open(path, 'wb') as file:
                file.write(content[: len(content) // 2])
            raise KeyboardInterrupt
        with open(path, 'wb') as file:
            file.write(content)

    monkeypatch.setattr(LocalBackend, 'put', stop_half_way)
    with pytest.raises(KeyboardInterrupt):
        runner.train()
    last = (tmp_path / 'last_checkpoint').read_text()
    assert last.endswith('epoch_1.pth')
    assert read_checkpoint(last)['meta']['epoch'] == 1


def test_an_epoch_is_written_once(tmp_path, request, monkeypatch):
    """mmengine writes it again after an evaluation with a new best."""
    written = []
    save = LocalBackend.put

    def note(self, content, path):
        written.append(path)
        save(self, content, path)

    monkeypatch.setattr(LocalBackend, 'put', note)
    runner = build(
        tmp_path, request.node.name, dict(max_epochs=3), [Rising(prefix='toy')], 'toy/score'
    )
    runner.train()
    assert len(written) == 2 * 3
    assert sorted(path.name for path in tmp_path.glob('*.pth')) == [
        'best_toy_score_epoch_3.pth',
        'epoch_3.pth',
    ]


@pytest.mark.parametrize(
    'runner',
    [
        dict(max_epochs=5, val_interval=2),
        dict(max_epochs=6, val_interval=2, val_begin=4),
        dict(max_epochs=9, val_interval=4, dynamic_intervals=[(6, 1)]),
        dict(max_epochs=9, val_interval=3, val_begin=2, dynamic_intervals=[(3, 2), (8, 5)]),
    ],
    indirect=True,
)
def test_which_epochs_are_evaluated_is_known_before(runner):
    """A resumed run makes up for the evaluation that an interrupted one has missed."""

    class Note(Hook):
        def before_train(self, runner):
            self.expected = [
                i for i in range(1, runner.max_epochs + 1) if evaluates_after(runner, i)
            ]
            self.evaluated = []

        def after_val(self, runner):
            self.evaluated.append(runner.epoch)

    note = Note()
    runner.register_hook(note)
    runner.train()
    assert note.evaluated == note.expected


def test_lines_of_an_evaluation_have_figures_alone(runner, tmp_path):
    """mmengine adds what the message hub has under names that begin with "val"."""
    runner.train()
    [log] = tmp_path.glob('*/*.log')
    lines = [line for line in log.read_text().splitlines() if 'Epoch(val)' in line]
    assert len(lines) == 2
    assert all(re.search(r'\] +score: 0.0000  data_time: [\d.]+  time: [\d.]+$', x) for x in lines)


@pytest.mark.parametrize(
    'train_cfg',
    [
        dict(max_epochs=4, val_interval=2),
        dict(max_iters=8, val_interval=4, by_epoch=False),
        dict(max_epochs=5, val_interval=2, dynamic_intervals=[(4, 1)]),
    ],
)
def test_a_resumed_run_begins_with_the_evaluation_of_its_checkpoint(tmp_path, request, train_cfg):
    """All of what follows is that of the whole run, wherever it begins."""

    class Note(Hook):
        priority = 'LOWEST'

        def __init__(self):
            self.events = []

        def before_train_iter(self, runner, batch_idx, data_batch=None):
            self.events.append(('train', runner.iter))

        def after_val_epoch(self, runner, metrics=None):
            best = runner.message_hub.get_info('best_score')
            self.events.append(('val', runner.iter, metrics['toy/score'], best))

    def events(name, **options):
        evaluator = [Rising(prefix='toy')]
        runner = build(tmp_path / 'work', name, train_cfg, evaluator, 'toy/score', -1, **options)
        note = Note()
        runner.register_hook(note)
        runner.train()
        return note.events

    whole = events(request.node.name)
    shutil.copytree(tmp_path / 'work', tmp_path / 'saved')
    saved = sorted((tmp_path / 'saved').glob('[ei]*.pth'))
    assert len(saved) > 3
    for path in saved:
        done = read_checkpoint(path)['meta']['iter']
        follows = [event for event in whole if event[1] >= done]
        resumed = events(f'{request.node.name} {path.stem}', load_from=str(path), resume=True)
        assert resumed == follows


@pytest.mark.parametrize('name', ['evaluated_epoch', 'validated_epoch'])
def test_checkpoints_that_know_their_evaluation(runner, tmp_path, request, name):
    """Earlier versions wrote them again after it."""
    runner.train()
    path = tmp_path / 'epoch_2.pth'
    checkpoint = read_checkpoint(path)
    checkpoint['message_hub']['runtime_info'][name] = 2
    torch.save(checkpoint, path)
    build(tmp_path, f'{request.node.name} resumed', load_from=str(path), resume=True).train()
    assert sum(log.read_text().count('Epoch(val)') for log in tmp_path.glob('*/*.log')) == 2


@pytest.mark.parametrize(
    ('prefix', 'said', 'epochs'),
    [('toy', r'which gives toy/\*', 0), (None, 'which gives score', 1)],
)
def test_a_best_by_an_unknown_figure_is_refused(tmp_path, request, prefix, said, epochs):
    """Before the first epoch where the prefix tells it, else when the first figures are there."""
    evaluator = [Zero(prefix=prefix)]
    runner = build(tmp_path, request.node.name, evaluator=evaluator, save_best='coco/AP')
    with pytest.raises(ValueError, match=f"save_best='coco/AP' is no figure of the .*, {said}$"):
        runner.train()
    assert runner.epoch == epochs


@pytest.mark.parametrize('name', ['auto', 'toy/score'])
def test_the_best_by_a_figure_that_there_is(tmp_path, request, name):
    build(tmp_path, request.node.name, evaluator=[Zero(prefix='toy')], save_best=name).train()
    assert list(tmp_path.glob('best_toy_score_epoch_1.pth'))


def test_evaluators_of_several_sets_begin_names_by_the_set(tmp_path, request):
    evaluator = MultiDatasetsEvaluator([Zero(prefix='toy')], ['first'])
    runner = build(tmp_path, request.node.name, evaluator=evaluator, save_best='first/toy/score')

    class Begun(Hook):
        priority = 'LOWEST'

        def before_train(self, runner):
            raise KeyboardInterrupt

    runner.register_hook(Begun())
    with pytest.raises(KeyboardInterrupt):
        runner.train()


def test_a_resumed_one_cycle_goes_on(tmp_path, request):
    """mmengine saves a function of this scheduler, which torch refuses to load."""
    cycle = dict(type='OneCycleLR', eta_max=1.0, total_steps=8, end=8, by_epoch=False)

    def rates(name, epochs, **options):
        noted = []

        class Note(Hook):
            def before_train_iter(self, runner, batch_idx, data_batch=None):
                noted.append(runner.optim_wrapper.get_lr()['lr'][0])

        runner = build(
            tmp_path / name, f'{request.node.name} {name} {epochs}', dict(max_epochs=epochs),
            param_scheduler=dict(cycle), **options,
        )  # fmt: skip
        runner.register_hook(Note())
        runner.train()
        return noted

    whole = rates('whole', 4)
    assert len({*whole}) > 5
    assert rates('stopped', 2) == whole[:4]
    assert rates('stopped', 4, resume=True) == whole[4:]


def test_what_could_not_be_resumed_ends_the_training_at_once(runner):
    """Not when somebody resumes it."""

    class Keep(Hook):
        def before_train_epoch(self, runner):
            runner.message_hub.update_info('kept', {'a': re.compile('a')})

    runner.register_hook(Keep())
    with pytest.raises(
        ValueError, match=r'could not be resumed: checkpoint .*epoch_1.pth holds an'
    ):
        runner.train()
    assert runner.epoch == 0
