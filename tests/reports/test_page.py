"""The files of a report: whole, closed, alike each time, and without anything from elsewhere."""

import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser

from deim_mmdet.reports import plots, write_report
from deim_mmdet.reports.counts import TrainingCounts
from deim_mmdet.reports.page import render
from deim_mmdet.reports.pictures import window

import cv2
import numpy as np
import pytest
import scene
from matplotlib import mathtext

VOID = {'meta', 'img', 'br', 'source'}
TRAINING = TrainingCounts(['data/train.json'], 9, dict(cat=[100.0, 2000.0, 9999.0]))


class Page(HTMLParser):
    """Collects a page's text and what it loads; fails where tags don't close each other."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.open, self.text, self.loaded, self.tags = [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attributes:
            if name in ('src', 'srcset', 'href', 'data', 'action', 'poster'):
                self.loaded.append(value)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] != ['style']:
            self.text.append(data)


@pytest.fixture(scope='module')
def report(tmp_path_factory):
    """The folder of a report on the scene, and its content."""
    images, folder = tmp_path_factory.mktemp('images'), tmp_path_factory.mktemp('report')
    scene.write_images(images)
    return folder, write_report(scene.evaluated(images), TRAINING, folder), images


def test_page_is_whole_and_loads_nothing_from_elsewhere(report):
    folder, _, _ = report
    text = (folder / 'report.html').read_text()
    page = Page(text)
    assert len(page.loaded) > 8
    assert all(re.match(r'data:image/(png|jpeg);base64,[\w/]', value) for value in page.loaded)
    style = text[text.index('<style>') : text.index('</style>')]
    assert 'url(' not in style
    assert '@import' not in style
    assert 'script' not in page.tags
    assert 'prefers-color-scheme: dark' in style
    # Text of users is escaped.
    assert 'a <config>.py' in ''.join(page.text)


def test_page_shows_what_the_json_holds_and_nothing_else(report):
    folder, content, _ = report
    held = json.loads((folder / 'report.json').read_text())
    assert held == content
    assert render(held, folder) == (folder / 'report.html').read_text()
    said = ' '.join(Page(render(held, folder)).text)
    for figure in (held['figures']['AP'], held['threshold']['f1'], held['threshold']['recall']):
        assert f'{figure:.3f}' in said
    for sentence in held['stands_out']:
        assert sentence in said
    for section in held['pictures'].values():
        assert section['title'] in said
        assert all(each['caption'] in said for each in section['shown'])


def test_pictures_show_each_error(report):
    folder, content, _ = report
    captions = {
        name: [each['caption'] for each in section['shown']]
        for name, section in content['pictures'].items()
    }
    assert captions == dict(
        labels=[
            'cat 0.95: an object that is not annotated?',
            'annotated twice? cat (annotation 102) and cat (annotation 103)',
            'cat 0.87: annotated as another class? dog (annotation 104)',
        ],
        false_positives=['cat 0.95: nothing is annotated there'],
        missed=['missed: cat (annotation 105)', 'missed: cat (annotation 103)'],
        confused=['cat 0.87: annotated as dog (annotation 104)'],
    )
    for section in content['pictures'].values():
        for each in section['shown']:
            assert cv2.imread(str(folder / each['file'])).std() > 10
    plots = [name for files in content['plots'].values() for name in files.values()]
    assert len(plots) == 4
    light, dark = (cv2.imread(str(folder / f'plots/curves_{s}.png')) for s in ('light', 'dark'))
    assert light.mean() > 200 > 60 > dark.mean()


@pytest.mark.parametrize('counts', [(209, 214, 2381), (90, 950), (1, 30000), (0, 7)])
def test_counts_are_labelled_by_numbers(report, monkeypatch, tmp_path, counts):
    """matplotlib labels ticks of a short logarithmic axis by formulas, which aren't drawn here."""
    content = json.loads((report[0] / 'report.json').read_text())
    entry = next(entry for entry in content['classes'] if entry['figures']['AP'] is not None)
    content['classes'] = [{**entry, 'train': {**entry['train'], 'all': count}} for count in counts]
    content['training']['note'] = None
    figures = []
    monkeypatch.setattr(plots, 'save_figure', lambda figure, path: figures.append(figure))
    plots.draw_plots(content, tmp_path)
    _, by_count = figures[-1].axes
    figures[-1].draw_without_rendering()
    labels = [
        label.get_text()
        for minor in (False, True)
        for label in by_count.get_xticklabels(minor=minor)
        if label.get_text()
    ]
    low, high = by_count.get_xlim()
    assert sum(low <= float(label) <= high for label in labels) > 1


def test_equal_evaluations_give_equal_files(report, tmp_path):
    folder, _, images = report
    write_report(scene.evaluated(images), TRAINING, tmp_path)
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob('*.*'))
    assert names == sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob('*.*'))
    for name in names:
        assert (folder / name).read_bytes() == (tmp_path / name).read_bytes(), name


def test_many_classes_and_images_that_cannot_be_read(tmp_path):
    names = [f'class {i}' for i in range(30)]
    objects = [(1, name, (5 * i, 5, 4, 4), 0) for i, name in enumerate(names)]
    given = scene.evaluated(tmp_path, objects, [], 1, {name: i + 1 for i, name in enumerate(names)})
    content = write_report(given, TrainingCounts(note='it is gone'), tmp_path)
    assert content['pictures']['missed'] == dict(title='Worst misses', unreadable=12, shown=[])
    said = ' '.join(Page((tmp_path / 'report.html').read_text()).text)
    assert 'Only the 20 classes with the most errors' in said
    assert '12 images could not be read' in said
    assert 'Training objects are not counted: it is gone.' in said


def test_names_with_dollar_signs_are_no_formulas(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(mathtext.MathTextParser, 'parse', lambda *args: drawn.append(args))
    name = r'$5 or $\foo{'
    given = scene.evaluated(tmp_path, [(1, name, (5, 5, 9, 9), 0)], [], 1, {name: 1, 'b': 2})
    write_report(given, TRAINING, tmp_path / 'report')
    assert not drawn
    page = Page((tmp_path / 'report' / 'report.html').read_text())
    assert name in page.text


def test_texts_are_in_utf_8_whatever_the_locale(repo_root, tmp_path):
    module = repo_root / 'deim_mmdet' / 'utils' / 'files.py'
    code = f"import runpy; runpy.run_path({str(module)!r})['write_text']('text', '\\u732b')"
    ascii_only = dict(os.environ, LC_ALL='C', PYTHONUTF8='0', PYTHONCOERCECLOCALE='0')
    subprocess.run([sys.executable, '-c', code], cwd=tmp_path, env=ascii_only, check=True)
    assert (tmp_path / 'text').read_bytes().decode('utf-8') == '\u732b'


def test_window_is_a_square_around_the_boxes_inside_the_image():
    assert window(np.array([[90, 90, 110, 130]]), (400, 400)) == (50, 60, 150, 160)
    # Moved into the image, and no larger than it.
    assert window(np.array([[0, 380, 40, 400]]), (400, 300)) == (0, 300, 100, 400)
    assert window(np.array([[0, 0, 290, 10], [0, 90, 9, 99]]), (100, 300)) == (0, 0, 300, 100)
    # A tiny object has its surroundings.
    assert window(np.array([[100, 100, 102, 102]]), (400, 400)) == (77, 77, 125, 125)
