"""RUN/report.html: one page, without network or other files, that says how a run goes and what it came to."""

from launch.run_report.numbers import RunState
from launch.run_report.writer import REPORT_FILE, ReportWriter, pages_of, write_report

__all__ = ["REPORT_FILE", "ReportWriter", "RunState", "pages_of", "write_report"]
