"""The steps of check_gpu.sh: their commands, and how much of the time is theirs."""

import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


class Kind(IntEnum):
    """What a step is for; those of one kind run together, and the kinds in this order."""

    #: It makes what other steps need. These run one by one.
    MAKES = 0
    #: It passes or fails. These run side by side, as many as there are cores for.
    CHECKS = 1
    #: Its figures are times. These run one by one, with the machine to themselves.
    MEASURES = 2


@dataclass(frozen=True)
class Step:
    """A command, run in the checkout.

    Args:
        name: Its name in the results.
        command: Program and arguments.
        share: Seconds that are kept for it, whatever the steps before take.
        kind: When it runs, and beside which others.
    """

    name: str
    command: list[str]
    share: float
    kind: Kind = Kind.MEASURES


@dataclass(frozen=True)
class Settings:
    """What the steps depend on: ``'cuda'`` or ``'cpu'``, and the folder of all that is written."""

    device: str
    out: Path

    @property
    def small(self) -> bool:
        """Whether sizes have to be those of a CPU."""
        return self.device == 'cpu'

    def step(self, name: str, share: float, *command: object, kind: Kind = Kind.MEASURES) -> Step:
        """Arguments for Python, and the seconds that they may take on a GPU."""
        words = [sys.executable, *map(str, command)]
        return Step(name, words, share * (8 if self.small else 1), kind)

    def part(
        self, name: str, share: float, function: str, *options: str, kind: Kind = Kind.MEASURES
    ) -> Step:
        """A step that is a function of gpu_parts.py or gpu_trainings.py."""
        common = ('--device', self.device, '--out', self.out)
        words = ('tools/dev/gpu_parts.py', function, *common, *options)
        return self.step(name, share, *words, kind=kind)

    def tests(self, name: str, share: float, *options: object) -> Step:
        words = ('-X', 'faulthandler', '-m', 'pytest', '-q', '-rs', *options)
        return self.step(name, share, *words, kind=Kind.CHECKS)


def operators(settings: Settings) -> Iterator[Step]:
    """Compile them, run their tests on the device, time them."""
    # Operators for CPUs alone, compiled before, would count as done.
    force = () if settings.small else ('--force',)
    compiling = ('setup.py', '--quiet', 'build_ext', '--inplace', *force)
    yield settings.step('compile', 20, *compiling, kind=Kind.MAKES)
    yield settings.part('versions', 8, 'machine', kind=Kind.CHECKS)
    # On their own: on one machine they ended the interpreter.
    tests = 'tests/ops/test_deformable_attention.py'
    yield settings.tests('refused arguments', 8, tests, '-k', 'operator_checks')
    chosen = 'gradients or types' if settings.small else 'not operator_checks'
    yield settings.tests('tests', 26, tests, '-k', chosen)
    sizes = ('--repeats', '3', '--threads', '1') if settings.small else ()
    yield settings.step('times', 18, 'benchmarks/operators.py', '--device', settings.device, *sizes)


def precision(settings: Settings) -> Iterator[Step]:
    """Losses and gradients in mixed precision against double precision."""
    yield settings.part('losses and gradients', 18, 'precision', kind=Kind.CHECKS)


def reads(settings: Settings) -> Iterator[Step]:
    """An iteration of the trainer in which only marked reads may wait for the GPU."""
    yield settings.part('an iteration', 16, 'reads', kind=Kind.CHECKS)


def training(settings: Settings) -> Iterator[Step]:
    """60 iterations through all stages, interrupted and resumed, with the restart from the best."""
    yield settings.part('60 iterations', 44, 'training', kind=Kind.CHECKS)


def steps(settings: Settings) -> Iterator[Step]:
    """Times of training steps, captured as a graph, in the trainer; the reference; transformers."""
    yield settings.part('ours', 110, 'steps')
    sizes = ('--models', 'dfine_n', '--repeats', 1)
    if not settings.small:
        sizes = ('--amp', '--repeats', 5)
    yield settings.step(
        'side by side', 70, 'benchmarks/training_step.py', '--device', settings.device, *sizes
    )


def inference(settings: Settings) -> Iterator[Step]:
    """Latency of all forms of a model; TensorRT and torch.compile take minutes to build one."""
    yield settings.part('latency', 50, 'latency')
    # The time of one doesn't depend on that of the others.
    yield settings.part('latency, compiled', 12, 'latency', '--backends', 'compiled')
    if not settings.small:
        yield settings.part('latency, TensorRT', 8, 'latency', '--backends', 'tensorrt')


def distributed(settings: Settings) -> Iterator[Step]:
    """torchrun over NCCL, or over gloo without a GPU."""
    yield settings.part('torchrun', 26, 'distributed', kind=Kind.CHECKS)


def tests(settings: Settings) -> Iterator[Step]:
    """The other tests that run on a GPU where there is one."""
    chosen = [
        path.relative_to(ROOT)
        for path in sorted((ROOT / 'tests').glob('*/**/test_*.py'))
        if re.search(r'skipif\(not torch\.cuda|on_gpu', path.read_text())
        and path.parent.name not in ('ops', 'tools')
    ]
    yield settings.tests('tests', 26, '-m', 'not slow', *chosen)


def compiled(settings: Settings) -> Iterator[Step]:
    """Captured and compiled training against eager, and times of compiled steps."""
    if not settings.small:
        yield settings.part(
            'captured like eager', 8, 'agreement', '--form', 'captured', kind=Kind.CHECKS
        )
        # The code is kept. So it is there when the same is timed, without other work.
        yield settings.part('compiling', 36, 'compiled', kind=Kind.CHECKS)
    yield settings.part(
        'compiled like eager', 36, 'agreement', '--form', 'compiled', kind=Kind.CHECKS
    )
    yield settings.part('ours, compiled', 16, 'compiled')


PARTS: dict[str, Callable[[Settings], Iterator[Step]]] = {
    part.__name__: part
    for part in (
        operators, precision, reads, training, steps, inference, distributed, tests, compiled,
    )
}  # fmt: skip
