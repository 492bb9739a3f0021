from .hook import ReportHook
from .report import check_argument, write_report

__all__ = ['ReportHook', 'check_argument', 'write_report']
