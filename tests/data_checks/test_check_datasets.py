import json
import os
import signal

from deim_mmdet.data_checks.config import check_data, check_datasets
from deim_mmdet.data_checks.images import ImageTask, inspect_image
from deim_mmdet.data_checks.pool import inspect_images
from deim_mmdet.data_checks.problems import PROBLEMS
from deim_mmdet.data_checks.sheet import draw_report
from deim_mmdet.datasets import LoadImageChecked
from deim_mmdet.datasets.annotation_problems import DROPPED

import cv2
import numpy as np
import pytest
from messy_data import BREAKING, HARMLESS, write_messy_data
from mmcv.transforms import LoadImageFromFile
from mmengine.config import Config
from typed_configs import SPELLINGS, spelled


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv('DEIM_MMDET_CACHE', str(tmp_path / 'cache'))
    return tmp_path / 'cache' / 'checks'


def config_of(folder, evaluation=False, **options):
    dataset = dict(
        type='CheckedCocoDataset',
        data_root=str(folder),
        ann_file='all.json',
        data_prefix=dict(img=''),
        **options,
    )
    if evaluation:
        loader = [dict(type='LoadImageFromFile')]
        return Config(
            dict(val_dataloader=dict(dataset=dict(dataset, test_mode=True, pipeline=loader)))
        )
    pipeline = [dict(type='DenseO2O', load=[dict(type='LoadImageChecked')])]
    wrapper = dict(type='DenseO2ODataset', dataset=dict(dataset, pipeline=[]), pipeline=pipeline)
    return Config(dict(train_dataloader=dict(dataset=wrapper)))


def counts(report):
    return {name: count.count for name, count in report.problems.items()}


@pytest.mark.parametrize('workers', [0, 2])
def test_every_fault_is_counted(tmp_path, workers):
    folder = write_messy_data(tmp_path / 'data', breaking=True)
    [report] = check_datasets(config_of(folder), images=True, workers=workers)
    assert counts(report) == {**HARMLESS, **BREAKING}
    assert {name for name, count in report.problems.items() if count.breaking} == set(BREAKING)
    content = json.loads((folder / 'all.json').read_text())
    assert report.images == len(content['images']) - 1
    assert report.annotations == len(content['annotations'])
    dropped = sum(counts(report)[name] for name in DROPPED)
    assert report.used + dropped == report.annotations
    shown = draw_report([report])
    assert shown.ndim == 3
    assert shown.std() > 10


def test_data_without_the_breaking_files_does_not_break(tmp_path):
    folder = write_messy_data(tmp_path / 'data', breaking=False)
    [report] = check_datasets(config_of(folder), images=True)
    assert counts(report) == HARMLESS
    assert not report.breaks
    json.loads(json.dumps(report.to_dict(), allow_nan=False))
    text = report.text()
    assert 'BREAKS' not in text
    assert '3 boxes with a coordinate that is not finite (dropped)' in text


def test_every_problem_of_annotations_and_images_is_in_the_messy_data():
    of_the_file_alone = {
        'unusable_file',
        'other_format',
        'repeated_image_id',
        'repeated_category_id',
        'repeated_category_name',
        'classes_differ',
        'no_usable_box',
        'no_images',
        'no_annotations',
        'annotation_id_zero',
        # And what else depends on the rest of the config.
        'beyond_metric_limit',
        'category_left_out',
        'repeated_file_name',
    }
    assert set(HARMLESS) | set(BREAKING) == set(PROBLEMS) - of_the_file_alone


def test_the_table_in_the_documentation_is_that_of_the_package(repo_root):
    text = (repo_root / 'docs' / 'data.md').read_text()
    words = {True: 'yes', False: 'no'}
    for problem in PROBLEMS.values():
        breaks = words.get(problem.breaks, problem.breaks)
        assert f'\n| {problem.title} | {problem.training} | {breaks} |\n' in text


def test_what_only_evaluation_refuses_breaks_in_validation_alone(tmp_path):
    folder = write_messy_data(tmp_path / 'data', breaking=False)
    [report] = check_datasets(config_of(folder, evaluation=True))
    broken = {name for name, count in report.problems.items() if count.breaking}
    assert broken == {'repeated_annotation_id'}


def test_each_way_in_which_a_file_is_unusable_is_one_finding(tmp_path):
    (tmp_path / 'all.json').write_text('{"images": [')
    [report] = check_datasets(config_of(tmp_path), images=True)
    assert report.breaks
    assert counts(report) == {'unusable_file': 1}
    assert 'all.json is not JSON' in report.text()


def test_a_missing_class_breaks(tmp_path):
    folder = write_messy_data(tmp_path / 'data', breaking=False)
    config = config_of(folder, metainfo=dict(classes=('disc', 'square')))
    [report] = check_datasets(config)
    assert report.problems['classes_differ'].breaking == 1
    assert "no category 'square'" in report.text()


def emptied(folder, name):
    """A data set whose list of this name is empty."""
    path = write_messy_data(folder, breaking=False) / 'all.json'
    path.write_text(json.dumps(json.loads(path.read_text()) | {name: []}))
    return folder


@pytest.mark.parametrize('evaluation', [False, True])
def test_a_file_without_images_breaks(tmp_path, evaluation):
    [report] = check_datasets(config_of(emptied(tmp_path, 'images'), evaluation))
    assert report.problems['no_images'].breaking == 1
    assert 'no_annotations' not in report.problems


def test_a_set_without_annotations_breaks_training_alone(tmp_path):
    config = config_of(emptied(tmp_path, 'annotations'))
    evaluated = config_of(tmp_path, evaluation=True)
    config.val_dataloader = config.test_dataloader = evaluated.val_dataloader
    for _ in range(2):  # anew, and from the cache
        training, validation = check_datasets(config)
        assert training.problems['no_annotations'].breaking == 1
        assert validation.problems['no_annotations'].count == 1
        assert not validation.breaks
    with pytest.raises(ValueError, match='would break training'):
        check_data(config)


def test_a_file_that_is_listed_for_each_of_its_objects_is_named(tmp_path):
    path = write_messy_data(tmp_path, breaking=False) / 'all.json'
    content = json.loads(path.read_text())
    assert 'repeated_file_name' not in check_datasets(config_of(tmp_path))[0].problems
    (photo,) = (each for each in content['images'] if each['file_name'] == 'alpha.png')
    content['images'].append(photo | dict(id=1000))
    path.write_text(json.dumps(content))
    [report] = check_datasets(config_of(tmp_path))
    assert report.problems['repeated_file_name'].count == 1
    assert 'alpha.png (id 1000)' in report.text()


def test_an_area_of_nothing_is_shown_beside_its_box(tmp_path):
    [report] = check_datasets(config_of(write_messy_data(tmp_path, breaking=False)))
    says = [example['says'] for example in report.problems['box_without_area'].examples]
    assert any(text.endswith('of 10 x 10 pixels with area 0') for text in says)


def test_boxes_of_other_classes_are_not_used(tmp_path):
    folder = write_messy_data(tmp_path / 'data', breaking=False)
    content = json.loads((folder / 'all.json').read_text())
    ids = {category['name']: category['id'] for category in content['categories']}
    [report] = check_datasets(config_of(folder, metainfo=dict(classes=('ring',))))
    [whole] = check_datasets(config_of(folder))
    [other] = check_datasets(config_of(folder, metainfo=dict(classes=('disc',))))
    rings = [each for each in content['annotations'] if each['category_id'] == ids['ring']]
    assert 0 < report.used <= len(rings)
    assert report.used + other.used == whole.used
    says = report.problems['category_left_out'].examples[0]['says']
    assert says.startswith("'disc' (")


def test_a_set_without_an_object_of_its_classes_breaks_training_alone(tmp_path):
    folder = write_messy_data(tmp_path / 'data', breaking=False)
    path = folder / 'all.json'
    content = json.loads(path.read_text())
    for number, each in enumerate(content['annotations'], 1):
        each['id'], each['category_id'] = number, 4
    path.write_text(json.dumps(content))
    rings = dict(metainfo=dict(classes=('ring',)))
    config = config_of(folder, **rings)
    config.val_dataloader = config_of(folder, evaluation=True, **rings).val_dataloader
    training, validation = check_datasets(config)
    assert training.used == validation.used == 0
    assert training.problems['no_annotations'].breaking == 1
    assert 'annotations, none of the classes can be used' in training.text()
    assert validation.problems['no_annotations'].count == 1
    assert not validation.breaks
    # Beside a file that has some, it is one of background images.
    first = config.train_dataloader.dataset.dataset
    second = dict(first, data_root=str(write_messy_data(tmp_path / 'b', breaking=False)))
    config.train_dataloader.dataset.dataset = dict(type='ConcatDataset', datasets=[first, second])
    assert not any(report.breaks for report in check_datasets(config, splits=['training']))


def test_background_images_may_have_a_file_of_their_own(tmp_path):
    config = config_of(write_messy_data(tmp_path / 'a', breaking=False))
    first = config.train_dataloader.dataset.dataset
    second = dict(first, data_root=str(emptied(tmp_path / 'b', 'annotations')))
    config.train_dataloader.dataset.dataset = dict(type='ConcatDataset', datasets=[first, second])
    reports = check_datasets(config)
    assert len(reports) == 2
    assert not any(report.breaks for report in reports)


def test_data_sets_in_other_formats_are_named_and_left_alone(repo_root):
    config = Config.fromfile(repo_root / 'configs/deim_dfine_l_crowdhuman.py')
    reports = check_datasets(config)
    assert [report.splits for report in reports] == [['training'], ['validation'], ['test']]
    assert all(counts(report) == {'other_format': 1} for report in reports)
    assert 'CrowdHumanDataset' in reports[0].text()
    assert not any(report.breaks for report in reports)


@pytest.mark.parametrize('evaluation', [False, True])
def test_types_may_be_classes_and_paths(tmp_path, evaluation):
    folder = write_messy_data(tmp_path / 'data', breaking=True)
    config = config_of(folder, evaluation)
    if not evaluation:
        config.train_dataloader.dataset.skip_unreadable = True
    [named] = check_datasets(config, images=True)
    for spelling in SPELLINGS:
        other = Config(spelled(config.to_dict(), spelling))
        [found] = check_datasets(other, images=True)
        assert found.to_dict() == named.to_dict()


@pytest.mark.parametrize('spelling', SPELLINGS)
def test_other_formats_are_named_by_their_class(spelling):
    dataset = dict(type='CrowdHumanDataset', ann_file='a.odgt')
    [report] = check_datasets(
        Config(dict(train_dataloader=dict(dataset=spelled(dataset, spelling))))
    )
    [example] = report.problems['other_format'].examples
    assert example['says'] == 'CrowdHumanDataset'


def test_every_data_set_under_wrappers_is_checked(tmp_path):
    config = config_of(write_messy_data(tmp_path / 'a', breaking=False))
    first = config.train_dataloader.dataset.dataset
    second = dict(first, data_root=str(write_messy_data(tmp_path / 'b', breaking=False)))
    config.train_dataloader.dataset.dataset = dict(
        type='ConcatDataset', datasets=[dict(type='RepeatDataset', times=2, dataset=first), second]
    )
    reports = check_datasets(config)
    assert [report.annotation_file for report in reports] == [
        f'{tmp_path}/a/all.json',
        f'{tmp_path}/b/all.json',
    ]


def test_cache_is_used_by_contents_and_settings_and_ignored_where_corrupt(tmp_path, cache):
    folder = write_messy_data(tmp_path / 'data', breaking=False)
    [first] = check_datasets(config_of(folder))
    [kept] = cache.iterdir()
    # What is in the cache is what is given.
    kept.write_text(kept.read_text().replace('"count": 3', '"count": 77', 1))
    [again] = check_datasets(config_of(folder))
    assert 77 in counts(again).values()
    assert counts(check_datasets(config_of(folder), use_cache=False)[0]) == counts(first)
    # Another file, other settings.
    (folder / 'all.json').write_text((folder / 'all.json').read_text() + ' ')
    assert counts(check_datasets(config_of(folder))[0]) == counts(first)
    check_datasets(config_of(folder, evaluation=True))
    assert len(list(cache.iterdir())) == 3
    for rubbish in (b'', b'\xff\xfe', b'[]', b'{"problems": 1}', b'{"problems": {"x": {}}}'):
        for file in cache.iterdir():
            file.write_bytes(rubbish)
        assert counts(check_datasets(config_of(folder))[0]) == counts(first)


def test_without_a_place_for_the_cache_nothing_is_kept(tmp_path, monkeypatch):
    folder = write_messy_data(tmp_path / 'data', breaking=False)
    (tmp_path / 'file').touch()
    monkeypatch.setenv('DEIM_MMDET_CACHE', str(tmp_path / 'file'))
    assert check_datasets(config_of(folder))[0].images > 0


def test_test_set_that_is_the_validation_set_is_checked_once(tmp_path):
    folder = write_messy_data(tmp_path / 'data', breaking=False)
    config = config_of(folder, evaluation=True)
    config.test_dataloader = config.val_dataloader
    [report] = check_datasets(config)
    assert report.splits == ['validation', 'test']


class ForgivingLoader(LoadImageFromFile):
    """Fills in what is missing, as versions of OpenCV before 5 do."""

    def transform(self, results):
        return {**results, 'img': np.zeros((40, 60, 3), np.uint8)}


def test_truncated_images_break_only_where_the_loader_refuses_them(tmp_path):
    data = cv2.imencode('.jpg', np.full((40, 60, 3), 90, np.uint8))[1].tobytes()
    (tmp_path / 'cut.jpg').write_bytes(data[:-20])
    task = ImageTask(str(tmp_path / 'cut.jpg'), 'cut.jpg', (60, 40))
    for loader, breaks in ((LoadImageChecked(), True), (ForgivingLoader(), False)):
        [finding] = inspect_image(task, loader)
        assert (finding.problem, finding.breaks) == ('image_truncated', breaks)


def test_orientation_is_no_finding_where_it_is_ignored(tmp_path):
    folder = write_messy_data(tmp_path, breaking=False)
    loader = LoadImageChecked(color_type='color_ignore_orientation')
    path = folder / 'exif_not_annotated_8.jpg'
    assert inspect_image(ImageTask(str(path), path.name, (64, 48)), loader) == []
    path = folder / 'exif_turned_6.jpg'
    [finding] = inspect_image(ImageTask(str(path), path.name, (48, 64)), loader)
    assert finding.problem == 'size_differs'


class KillingLoader(LoadImageFromFile):
    """Kills its process at one file, as a decoder with a fault in native code does."""

    def transform(self, results):
        if results['img_path'].endswith('5.png'):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().transform(results)


def test_a_file_that_kills_its_process_is_a_finding(tmp_path):
    tasks = []
    for number in range(12):
        path = tmp_path / f'{number}.png'
        cv2.imwrite(str(path), np.full((8, 9, 3), 7, np.uint8))
        # Image 3 is of another size: what comes before and after the crash is not lost.
        tasks.append(ImageTask(str(path), path.name, (9, 9 if number in (3, 9) else 8)))
    findings = list(inspect_images(tasks, KillingLoader(), workers=2))
    assert [(finding.problem, finding.image) for finding in findings] == [
        ('size_differs', '3.png'),
        ('image_unreadable', '5.png'),
        ('size_differs', '9.png'),
    ]
    assert 'kills the process' in findings[1].says
