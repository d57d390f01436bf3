"""Pages that stand alone: one HTML file each, no network, and parts that every page shares."""

from __future__ import annotations

from selfdistill.report.charts import Chart, Series, curve_chart
from selfdistill.report.files import OuterSteps, read_run
from selfdistill.report.page import Live, render, render_run, write_report
from selfdistill.report.tokens import Coloured, colour, scale_limit
from selfdistill.report.versus_page import render_comparison, write_comparison

__all__ = [
    "Chart",
    "Coloured",
    "Live",
    "OuterSteps",
    "Series",
    "colour",
    "curve_chart",
    "read_run",
    "render",
    "render_comparison",
    "render_run",
    "scale_limit",
    "write_comparison",
    "write_report",
]
