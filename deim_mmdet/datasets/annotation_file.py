"""Reading of COCO annotation files, and the check that all entries have COCO's form."""

import json
import math
import reprlib
import sys
from collections.abc import Callable

from mmengine import fileio

from ..utils.errors import UserError

FORMAT = 'COCO format is {"images": [...], "annotations": [...], "categories": [...]}.'
# Integers up to here are exact as floating-point numbers; sums of them are finite.
LARGEST = 2**53

# Fields that refer to entries.
IDS = ('id', 'image_id', 'category_id')
TOO_LARGE = (
    f"Its size is above 2^53 ({LARGEST}), where floating-point numbers, which COCO's evaluation "
    'makes of ids, cannot tell integers apart. Number the entries anew, from 1.'
)

# Values may be too long and too deep for repr.
_short = reprlib.Repr()
_short.maxdict, _short.maxstring, _short.maxother = 8, 80, 80


def is_finite(value: float) -> bool:
    """Whether a number is neither NaN nor infinite nor larger than any picture; never raises."""
    return -LARGEST <= value <= LARGEST


def _is_number(value: object) -> bool:
    # JSON's integers have no limit, and COCO's evaluation makes floating-point numbers of them.
    return isinstance(value, float) or (type(value) is int and abs(value) <= sys.float_info.max)


def _is_numeric_id(value: object) -> bool:
    return _is_number(value) and is_finite(value) and value == int(value)


def _is_too_large(value: object) -> bool:
    is_integer = type(value) is int or (isinstance(value, float) and value.is_integer())
    return is_integer and not is_finite(value)


def _is_id(value: object) -> bool:
    return isinstance(value, str) or _is_numeric_id(value)


def _is_side(value: object) -> bool:
    return _is_number(value) and is_finite(value) and value > 0


def _is_text(value: object) -> bool:
    # A lone surrogate can be in JSON, but neither in a path nor in a log.
    return (
        isinstance(value, str)
        and value != ''
        and '\0' not in value
        and not any('\ud800' <= character <= '\udfff' for character in value)
    )


def _is_box(value: object) -> bool:
    return isinstance(value, list) and len(value) == 4 and all(map(_is_number, value))


def _is_flag(value: object) -> bool:
    return isinstance(value, int | float) and value in (0, 1)


AN_ID = (_is_id, 'an integer or a string')
SIDE = (_is_side, 'a number of pixels above 0')
TEXT = (_is_text, 'a string, not empty')
FLAG = (_is_flag, '0 or 1')

# Fields that every entry of a list must have.
REQUIRED: dict[str, dict[str, tuple[Callable, str]]] = {
    'images': {'id': AN_ID, 'file_name': TEXT, 'height': SIDE, 'width': SIDE},
    'annotations': {
        'id': AN_ID,
        'image_id': AN_ID,
        'category_id': AN_ID,
        'bbox': (_is_box, '[x, y, width, height] in pixels'),
    },
    'categories': {'id': AN_ID, 'name': TEXT},
}
# Fields of annotations that COCO's evaluation needs, and training reads where they are there.
OPTIONAL = {'area': (_is_number, 'a number of square pixels'), 'iscrowd': FLAG}


def read_annotation_file(path: str, evaluation: bool, backend_args: dict | None = None) -> dict:
    """Read a COCO annotation file, and check that every entry has COCO's form.

    What may be missing is filled in: ``area`` for training, and ``annotations`` for evaluation, as
    files of test images have none.

    Args:
        path: The file.
        evaluation: Whether COCO's evaluation, which needs more, will read it too.
        backend_args: Storage backend, see :func:`mmengine.fileio.get`.

    Raises:
        FileNotFoundError: The file cannot be opened.
        ValueError: The file is not JSON, or not in COCO's format; the message names the entry and
            the field.
    """
    content = _read(path, backend_args)
    error = _fault_of_form(content, evaluation)
    if error is not None:
        raise UserError(f'Annotation file {path} {error}')
    return content


def _read(path: str, backend_args: dict | None) -> object:
    try:
        text = fileio.get(path, backend_args=backend_args)
    except OSError as error:
        raise FileNotFoundError(
            f'Cannot open annotation file {path} ({error.strerror or error}). '
            'Check data_root and ann_file of the dataset in the config.'
        ) from error
    try:
        # The one encoding that COCO's evaluation reads, too.
        return json.loads(text.decode('utf-8'), object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:
        raise UserError(
            f'Annotation file {path} is not JSON ({error}). '
            'It must be a COCO annotation file; if it was downloaded, download it again.'
        ) from error


def _object(pairs: list[tuple[str, object]]) -> dict:
    """A JSON object. Python's own reading silently keeps the last of two equal names."""
    members = dict(pairs)
    if len(members) < len(pairs):
        names = [name for name, _ in pairs]
        repeated = next(name for name in names if names.count(name) > 1)
        raise UserError(f'an object has {_short.repr(repeated)} twice')
    return members


def _fault_of_form(content: object, evaluation: bool) -> str | None:
    """What first differs from COCO's format, if anything; fills in what may be missing."""
    if not isinstance(content, dict):
        return f'holds a {type(content).__name__}, not an object. {FORMAT}'
    if evaluation:
        content.setdefault('annotations', [])
    for name, required in REQUIRED.items():
        if not isinstance(content.get(name), list):
            return f'has no list "{name}". {FORMAT}'
        forms = required
        if name == 'annotations':
            forms = {**required, **OPTIONAL, 'ignore': FLAG}
            if evaluation:
                required = {**required, **OPTIONAL}
                forms['id'] = (_is_numeric_id, 'an integer')
        for position, entry in enumerate(content[name]):
            error = _fault_of_entry(entry, f'entry {position} of "{name}"', required, forms)
            if error is not None:
                return error
        if evaluation and len({isinstance(entry['id'], str) for entry in content[name]}) > 1:
            return f'has strings and numbers as ids of "{name}". Write all of them alike.'
    for annotation in content['annotations']:
        width, height = annotation['bbox'][2:]
        known = is_finite(width) and is_finite(height)
        annotation.setdefault('area', width * height if known else math.nan)
    return None


def _fault_of_entry(entry: object, place: str, required: dict, forms: dict) -> str | None:
    if not isinstance(entry, dict):
        return f'has {_short.repr(entry)} as {place}. {FORMAT}'
    missing = [field for field in required if field not in entry]
    if missing:
        return (
            f'lacks {", ".join(missing)} in {place}: {_short.repr(entry)}. Add it to every entry.'
        )
    for field, (is_right, form) in forms.items():
        if field in entry and not is_right(entry[field]):
            value = entry[field]
            remedy = f'It must be {form}.'
            if field in IDS and _is_too_large(value):
                remedy = TOO_LARGE
            return f'has {place} with {field} {_short.repr(value)}. {remedy}'
    return None
