"""Images of another size than their annotation file says; boxes belong to the file's size."""

from collections.abc import Sequence

from ..utils.errors import UserError

#: (height, width) in pixels.
Size = tuple[float, float]


def is_turned(annotated: Size, read: Size) -> bool:
    """Whether an image is annotated with width and height exchanged.

    That is so where only one of the two was turned by the image's EXIF orientation.

    Args:
        annotated: Size in the annotation file.
        read: Size of the image as it was read.
    """
    return tuple(annotated) == (read[1], read[0]) != tuple(read)


def box_factors(annotated: Size, read: Size) -> tuple[float, float]:
    """Factors (x, y) from pixels of the annotation file to pixels of the image as it was read.

    Both are 1 where the image is turned, as its boxes would fit in neither size.

    Args:
        annotated: Size in the annotation file.
        read: Size of the image as it was read.
    """
    if is_turned(annotated, read):
        return 1.0, 1.0
    return read[1] / annotated[1], read[0] / annotated[0]


def scale_instances(
    instances: Sequence[dict], x_factor: float, y_factor: float, path: str | None
) -> None:
    """Scale the objects of an image, as data sets list them, in place.

    Args:
        instances: Entries with ``bbox`` (x1, y1, x2, y2) in pixels and, of data with masks,
            ``mask`` as a list of polygons.
        x_factor: Factor of horizontal coordinates.
        y_factor: Factor of vertical coordinates.
        path: The image, for messages; None for an array.

    Raises:
        ValueError: A mask is run-length encoded: the code depends on the size of the image.
    """
    for instance in instances:
        x1, y1, x2, y2 = instance['bbox']
        instance['bbox'] = [x1 * x_factor, y1 * y_factor, x2 * x_factor, y2 * y_factor]
        mask = instance.get('mask')
        if isinstance(mask, dict):
            raise UserError(
                f'Image {path} has another size than annotated, and its masks are run-length '
                'encoded: write masks as polygons, or give the image its annotated size'
            )
        if mask:
            factors = (x_factor, y_factor)
            instance['mask'] = [
                [value * factors[index % 2] for index, value in enumerate(polygon)]
                for polygon in mask
            ]


def size_warning(path: str, annotated: Size, read: Size, color_type: str | None = None) -> str:
    """The message about an image that has another size than annotated.

    Args:
        path: The image.
        annotated: Size in the annotation file.
        read: Size of the image as it was read.
        color_type: How it was read, see :class:`~deim_mmdet.datasets.LoadImageChecked`; None where
            that isn't known.
    """
    found = (
        f'Image {path} is {read[1]}x{read[0]}, but {annotated[1]}x{annotated[0]} in the '
        'annotation file. '
    )
    if is_turned(annotated, read) and color_type is None:
        consequence = (
            'One of the two seems turned by its EXIF orientation, and the other not, so that its '
            'boxes do not fit: read it as it was annotated (color_type of the loader). '
        )
    elif is_turned(annotated, read):
        kind, ignored, _ = color_type.partition('_ignore_orientation')
        other = kind if ignored else f'{kind}_ignore_orientation'
        consequence = (
            f'It seems annotated with{"" if ignored else "out"} its EXIF orientation, so that its '
            f'boxes do not fit: color_type={other!r} reads it so. '
        )
    else:
        consequence = 'Its boxes are taken as pixels of the annotated size and scaled. '
    return f'{found}{consequence}tools/check_dataset.py --images lists all such images.'
