"""Precision, recall and F1 over the score, and the score with the best F1."""

from dataclasses import dataclass

import numpy as np

from .matching import Detections, Objects

# A curve is kept at as many recalls.
KEPT = 101


@dataclass
class Curve:
    """Precision, recall and F1 of the detections with at least a score.

    Arrays are empty without an object or a detection.

    Attributes:
        score: (N,) the detections' scores, the highest first, each once.
        precision: (N,) share of correct ones among the detections with at least this score.
        recall: (N,) share of the objects that these find.
        f1: (N,) harmonic mean of precision and recall.
    """

    score: np.ndarray
    precision: np.ndarray
    recall: np.ndarray
    f1: np.ndarray

    def best(self) -> dict | None:
        """Score, precision, recall and F1 where F1 is best, at the highest such score."""
        return self._at(int(np.argmax(self.f1))) if len(self.f1) else None

    def at(self, score: float) -> dict | None:
        """The numbers of :meth:`best` for the detections with at least this score.

        None without an object or a detection.
        """
        if not len(self.score):
            return None
        index = int(np.count_nonzero(self.score >= score)) - 1
        if index < 0:
            return dict(score=float(score), precision=None, recall=0.0, f1=0.0)
        return dict(self._at(index), score=float(score))

    def kept(self) -> dict[str, list[float]]:
        """About a hundred points of it: where recall reaches each hundredth, and the best."""
        if not len(self.score):
            return dict(score=[], precision=[], recall=[], f1=[])
        steps = np.linspace(0, self.recall[-1], KEPT)
        points = np.searchsorted(self.recall, steps)
        points = np.union1d(points, [np.argmax(self.f1), len(self.score) - 1])
        names = ('score', 'precision', 'recall', 'f1')
        return {name: [float(value) for value in getattr(self, name)[points]] for name in names}

    def _at(self, index: int) -> dict:
        names = ('score', 'precision', 'recall', 'f1')
        return {name: float(getattr(self, name)[index]) for name in names}


def curve(detections: Detections, objects: Objects, label: int | None = None) -> Curve:
    """The curve of one class, or of all together.

    Args:
        detections: Detections of all classes.
        objects: Objects of all classes.
        label: Position of the class; None takes the detections of all classes as one list.
    """
    counts = ~detections.ignored
    wanted = ~objects.crowd
    if label is not None:
        counts, wanted = counts & (detections.label == label), wanted & (objects.label == label)
    total = np.count_nonzero(wanted)
    score, right = detections.score[counts], detections.object[counts] >= 0
    if not total or not len(score):
        return Curve(*[np.zeros(0)] * 4)
    order = np.argsort(-score, kind='stable')
    score, right = score[order], right[order]
    # Detections of equal scores come and go together.
    last = np.append(np.flatnonzero(np.diff(score)), len(score) - 1)
    correct = np.cumsum(right)[last]
    precision, recall = correct / (last + 1), correct / total
    return Curve(score[last], precision, recall, 2 * correct / (last + 1 + total))
