"""The report on a data set: counts and examples, as text and as JSON."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field

from ..datasets.annotation_file import is_finite
from ..datasets.annotation_problems import Finding
from .problems import PROBLEMS

EXAMPLES = 20


@dataclass
class Count:
    """How often a problem was found, how often it breaks training, and the first examples.

    Examples are dictionaries with ``says`` and, where they are about an image or a box, ``image``
    (the file name) and ``bbox`` (x, y, w, h in pixels; None for a number that is not finite).
    """

    count: int = 0
    breaking: int = 0
    examples: list[dict] = field(default_factory=list)


@dataclass
class DatasetReport:
    """The findings of one annotation file and its images.

    ``used`` is the number of annotations that training uses, of ``annotations`` in the file.
    """

    annotation_file: str
    image_folder: str = ''
    splits: list[str] = field(default_factory=list)
    images: int = 0
    annotations: int = 0
    used: int = 0
    images_read: bool = False
    problems: dict[str, Count] = field(default_factory=dict)

    @property
    def breaks(self) -> bool:
        """Whether training would refuse the data set or stop in it."""
        return any(count.breaking for count in self.problems.values())

    def add(self, findings: Iterable[Finding]) -> None:
        for finding in findings:
            count = self.problems.setdefault(finding.problem, Count())
            count.count += 1
            count.breaking += finding.breaks
            if len(count.examples) < EXAMPLES:
                bbox = [x if is_finite(x) else None for x in finding.bbox]
                count.examples.append(
                    dict(says=finding.says, image=finding.image, bbox=bbox or None)
                )

    def to_dict(self) -> dict:
        """The report for JSON; each problem has its title and what training does."""
        content = asdict(self)
        for name, count in content['problems'].items():
            problem = PROBLEMS[name]
            count.update(title=problem.title, training=problem.training, remedy=problem.remedy)
        return dict(content, breaks=self.breaks)

    @classmethod
    def from_dict(cls, content: dict) -> 'DatasetReport':
        """The report that :func:`dataclasses.asdict` gave."""
        problems = {name: Count(**count) for name, count in content['problems'].items()}
        return cls(**{**content, 'problems': problems})

    def text(self, shown: int = 3) -> str:
        """Text for a terminal, with ``shown`` examples of each problem."""
        lines = [
            f'{", ".join(self.splits)}: {self.annotation_file}: {self.images} images'
            f'{" (read)" if self.images_read else ""}, {self.annotations} annotations, '
            f'{self.used} of them used'
        ]
        # What breaks training comes first.
        for name, count in sorted(self.problems.items(), key=lambda item: not item[1].breaking):
            problem = PROBLEMS[name]
            mark = 'BREAKS' if count.breaking else '      '
            lines.append(f'  {mark} {count.count:>7} {problem.title} ({problem.training})')
            places = [example['says'] for example in count.examples[:shown]]
            rest = count.count - len(places)
            lines.append(' ' * 17 + '; '.join(places) + (f'; {rest} more' if rest else ''))
            if problem.remedy:
                lines.append(' ' * 17 + problem.remedy)
        return '\n'.join(lines)
