from .deim_detector import DEIMDetector, LossLog

__all__ = ['DEIMDetector', 'LossLog']
