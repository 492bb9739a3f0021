"""What stands out in a report, in words."""

import math
from collections.abc import Iterator

from ..utils.text import some

# A class with fewer training objects is called rare, and only so many classes are named.
RARE = 50
NAMED = 5
# Side of a small object in pixels at the network's input, and the share of them that stands out.
SMALL_SIDE = 16
SMALL_SHARE = 0.3


def stands_out(content: dict) -> list[str]:
    """Sentences on a report's content, the most important first."""
    rules = (_nothing_found, _labels, _rare, _unseen, _small, _placing, _sizes, _confusion, _kinds)
    return [sentence for rule in rules for sentence in rule(content)] + [_threshold(content)]


def number(value: float | None) -> str:
    """A figure between 0 and 1 as text."""
    return '–' if value is None else f'{value:.3f}'


def least_score(value: float) -> str:
    """A threshold as text, rounded down: what has the score itself is still kept."""
    return f'{math.floor(1000 * value + 1e-6) / 1000:.3f}'


def percent(part: float, whole: float) -> str:
    """A share as text; a dash where the whole is 0."""
    return f'{100 * part / whole:.0f} %' if whole else '–'


def _threshold(content: dict) -> str:
    best, half = content['threshold'], content['at_half']
    if not best or not best['f1']:
        return 'No score threshold: no detection is correct.'
    text = (
        f'Keep detections with a score of at least {least_score(best["score"])}: F1 is best there '
        f'({number(best["f1"])}; precision {number(best["precision"])}, recall '
        f'{number(best["recall"])}).'
    )
    if half['f1'] < best['f1'] - 0.02:
        text += (
            f' At 0.5 recall would be {number(half["recall"])}, precision '
            f'{number(half["precision"])}.'
        )
    return f'{text} A threshold of another model is wrong for this one, see below.'


def _nothing_found(content: dict) -> Iterator[str]:
    if not content['detections']:
        yield 'There is not a single detection.'
    elif (content['figures']['AP50'] or 0) < 0.01:
        yield (
            f'AP50 is {number(content["figures"]["AP50"])}: hardly any detection is correct. Look '
            'at the pictures below: boxes in wrong places or of wrong classes come from data or '
            'preprocessing (tools/check_dataset.py, tools/analysis/show_samples.py), boxes of '
            'low scores from too short a training.'
        )


def _labels(content: dict) -> Iterator[str]:
    if count := content['label_errors']:
        yield (
            f'Likely label errors: {count}. Look at them first: errors in the evaluated set make '
            'every figure here wrong.'
        )


def _rare(content: dict) -> Iterator[str]:
    mean = content['figures']['AP']
    rare = [
        entry
        for entry in content['classes']
        if entry['train']
        and 0 < entry['train']['all'] < RARE
        and entry['figures']['AP'] is not None
        and mean is not None
        and entry['figures']['AP'] <= mean
    ]
    for entry in sorted(rare, key=lambda entry: entry['train']['all'])[:NAMED]:
        count = entry['train']['all']
        yield (
            f'Class {entry["name"]}: {count} training object{"s" if count > 1 else ""}, AP '
            f'{number(entry["figures"]["AP"])}.'
        )
    if len(rare) > NAMED:
        yield f'{len(rare) - NAMED} more classes have fewer than {RARE} training objects.'


def _unseen(content: dict) -> Iterator[str]:
    for part, text in (
        ('train', 'no object to train on'),
        ('val', 'no object to evaluate: their AP is unknown, and not part of the mean'),
    ):
        names = [c['name'] for c in content['classes'] if c[part] and not c[part]['all']]
        if names:
            yield f'{some(names, NAMED)}: {text}.'


def _small(content: dict) -> Iterator[str]:
    below = [row for row in content['input_sizes'] if row['to'] and row['to'] <= SMALL_SIDE]
    count, found = (sum(row[name] for row in below) for name in ('objects', 'found'))
    if count >= SMALL_SHARE * content['objects'] > 0:
        yield (
            f'{percent(count, content["objects"])} of the objects are below {SMALL_SIDE} px at '
            f'this input size ({content["input"]}), and {percent(found, count)} of these are '
            'found: train and test with a larger image_size (docs/recipe.md).'
        )


def _placing(content: dict) -> Iterator[str]:
    figures = content['figures']
    if (figures['AP50'] or 0) >= 0.1 and figures['AP75'] < 0.4 * figures['AP50']:
        yield (
            f'Objects are found, but boxes fit badly: AP50 is {number(figures["AP50"])}, AP75 '
            f'{number(figures["AP75"])}. A longer training helps, and tight annotations.'
        )


def _sizes(content: dict) -> Iterator[str]:
    known = [row for row in content['sizes'] if row['AP'] is not None and row['val'] >= 10]
    if len(known) < 2:
        return
    worst, best = min(known, key=lambda row: row['AP']), max(known, key=lambda row: row['AP'])
    if worst['AP'] < 0.5 * best['AP']:
        yield (
            f'AP of {worst["name"]} objects is {number(worst["AP"])} ({worst["val"]} objects), of '
            f'{best["name"]} ones {number(best["AP"])} ({best["val"]}).'
        )


def _confusion(content: dict) -> Iterator[str]:
    names, counts = content['confusion']['names'], content['confusion']['counts']
    pairs = [
        (count, sum(row), names[i], names[j])
        for i, row in enumerate(counts[:-1])
        for j, count in enumerate(row[:-1])
        if i != j and count >= 3 and count >= 0.1 * sum(row)
    ]
    for count, total, annotated, detected in sorted(pairs, key=lambda pair: -pair[0])[:3]:
        yield f'{count} of the {total} objects of class {annotated} are taken for {detected}.'


def _kinds(content: dict) -> Iterator[str]:
    errors = content['errors']
    kind, count = max(errors.items(), key=lambda item: item[1])
    total = sum(errors.values())
    if total >= 10 and count >= 0.5 * total:
        yield (
            f'{percent(count, total)} of the {total} false positives are of one kind: '
            f'{content["error_names"][kind]}.'
        )
