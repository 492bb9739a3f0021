"""Reports of annotation files, kept by the contents of the files."""

import hashlib
import json
import logging
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from mmengine.logging import print_log

from ..utils.files import cache_folder, replaced_when_complete
from ..version import __version__
from .report import DatasetReport

BLOCK = 2**20


def cached_report(
    annotation_file: str, settings: list, compute: Callable[[], DatasetReport]
) -> DatasetReport:
    """The report of ``compute``, from the cache where the file's contents were checked before.

    If an entry of the cache cannot be read, the report is computed anew. If the cache cannot be
    written, the report is not kept.

    Args:
        annotation_file: The file; its contents are half of the key.
        settings: The other half of the key: values for JSON that the report depends on too.
        compute: Function that makes the report.
    """
    if not Path(annotation_file).is_file():
        return compute()
    path = cache_folder() / 'checks' / f'{_key(annotation_file, settings)}.json'
    try:
        return DatasetReport.from_dict(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        report = compute()
    try:
        with replaced_when_complete(path) as temporary:
            temporary.write_text(json.dumps(asdict(report)))
    except OSError as error:
        print_log(f'The check is not cached: {error}', logger='current', level=logging.INFO)
    return report


def _key(annotation_file: str, settings: list) -> str:
    digest = hashlib.blake2b(json.dumps([__version__, *settings]).encode(), digest_size=16)
    with open(annotation_file, 'rb') as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()
