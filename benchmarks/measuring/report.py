"""What was measured of a config, as text, as JSON and as a plot."""

from dataclasses import dataclass, field
from pathlib import Path

from matplotlib.figure import Figure

from .published import published_points
from .timing import Timing


@dataclass
class Results:
    """The measurements of one config; parts that weren't asked for are empty.

    ``size`` is (height, width) of the images in pixels. ``parameters`` is their number, and
    ``flops`` are those of one image.
    """

    config: str
    size: tuple[int, int]
    parameters: int
    flops: float
    #: Times by batch size, then by backend.
    latency: dict[int, dict[str, Timing]] = field(default_factory=dict)
    #: Times by part of a training step.
    training: dict[str, Timing] = field(default_factory=dict)
    #: Times by part of a training step; on a GPU, until the host had enqueued the part.
    training_host: dict[str, Timing] = field(default_factory=dict)
    #: Images a second by stage.
    pipeline: dict[str, float] = field(default_factory=dict)
    #: By backend or step: MiB at its peak beyond the model's own.
    memory: dict[str, float | None] = field(default_factory=dict)


def as_text(results: Results) -> str:
    """Tables of everything that was measured of one config."""
    height, width = results.size
    lines = [
        f'{results.config}: {results.parameters / 1e6:.2f} M parameters, '
        f'{results.flops / 1e9:.1f} GFLOPs at {height}x{width}'
    ]
    for batch, timings in results.latency.items():
        # The first is the independent implementation, if it was run.
        name, reference = next(iter(timings.items()))
        lines.append(f'  {f"latency, batch {batch}":22}{"median":>9}{"p90":>9}{"p99":>9}'
                     f'{"lowest":>9}{"images/s":>10}  times {name}')  # fmt: skip
        for backend, timing in timings.items():
            lines.append(
                f'  {backend:22}{_row(timing)}{batch * 1e3 / timing.median:10.1f}'
                f'  {reference.median / timing.median:.2f} (lowest: '
                f'{reference.lowest / timing.lowest:.2f})'
            )
    for title, timings in (
        ('training step', results.training),
        ('the same on the host', results.training_host),
    ):
        if timings:
            lines.append(f'  {title:22}{"median":>9}{"p90":>9}{"p99":>9}{"lowest":>9}   share')
        for part, timing in timings.items():
            share = timing.median / timings['total'].median
            lines.append(f'  {part:22}{_row(timing)}{share:8.0%}')
    for stage, speed in results.pipeline.items():
        lines.append(f'  pipeline, {stage}: {speed:.1f} images/s in one process')
    for name, mebibytes in results.memory.items():
        if mebibytes is not None:
            lines.append(f'  memory beyond the model, {name}: {mebibytes:.0f} MiB')
    return '\n'.join(lines)


def _row(timing: Timing) -> str:
    return ''.join(
        f'{value:9.1f}' for value in (timing.median, timing.p90, timing.p99, timing.lowest)
    )


def as_json(results: Results) -> dict:
    """The same as :func:`as_text`, for programs; times in milliseconds."""

    def timings(values: dict[str, Timing]) -> dict[str, dict]:
        return {name: timing._asdict() for name, timing in values.items()}

    return vars(results) | dict(
        latency={batch: timings(values) for batch, values in results.latency.items()},
        training=timings(results.training),
        training_host=timings(results.training_host),
    )


def plot(all_results: list[Results], path: Path) -> None:
    """AP against latency: the published points, and the same models' times on this machine."""
    points = published_points()
    figure = Figure(figsize=(11, 4.5))
    published, here = figure.subplots(1, 2, sharey=True)
    for collection in dict.fromkeys(point.collection for point in points):
        curve = [point for point in points if point.collection == collection]
        curve.sort(key=lambda point: point.latency)
        published.plot(
            [p.latency for p in curve], [p.ap for p in curve], marker='o', label=collection
        )
    published.set(xlabel=f'latency [ms] ({points[0].hardware})', ylabel='box AP on COCO val2017')
    published.set_title('Published')
    accuracy = {point.name: point.ap for point in points}
    measured = [r for r in all_results if r.config in accuracy and r.latency]
    backends = dict.fromkeys(name for r in measured for t in r.latency.values() for name in t)
    for backend in backends:
        shown = [
            (timings[backend].median / batch, accuracy[r.config])
            for r in measured
            for batch, timings in list(r.latency.items())[:1]
            if backend in timings
        ]
        here.plot(*zip(*sorted(shown), strict=True), marker='o', label=backend)
    here.set(xlabel='latency [ms] an image', title='This machine, published AP')
    here.set_xscale('log')
    for axes in (published, here):
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
