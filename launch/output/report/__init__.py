"""RUN/report.html: one page, without network or other files, that says how a run goes and what it came to."""

from suture.launch.output.report.numbers import RunState
from suture.launch.output.report.writer import REPORT_FILE, ReportWriter, pages_of, write_report

__all__ = ["REPORT_FILE", "ReportWriter", "RunState", "pages_of", "write_report"]
