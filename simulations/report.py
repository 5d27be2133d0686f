"""report.html: one self-contained page that shows a run to people who were not there.

It loads nothing and runs nothing: figures are inline drawings, images are embedded, colours follow the
reader's light or dark setting. The same metrics and details give the same bytes.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedward.common.files import write_atomically
from fedward.simulations.markup import page
from fedward.simulations.metrics_file import check_metrics, write_metrics
from fedward.simulations.report_classes import confusion_section, roc_section
from fedward.simulations.report_costs import privacy_section, release_section, traffic_section
from fedward.simulations.report_details import ReportDetails
from fedward.simulations.report_header import header, subject
from fedward.simulations.report_measurement import measurement_sections
from fedward.simulations.report_quality import comparison_section, hospitals_section
from fedward.simulations.report_record import (
    environment_section,
    glossary_section,
    refusals_section,
    settings_section,
)
from fedward.simulations.report_rounds import rounds_section
from fedward.simulations.report_samples import samples_section
from fedward.simulations.stylesheet import STYLESHEET

__all__ = ["ReportDetails", "render_report", "write_metrics", "write_report"]


def write_report(path: Path, metrics: Mapping[str, Any], details: ReportDetails) -> None:
    """Write the report of one run, whole or not at all.

    Args:
        path: usually ``report.html`` in the run's folder, which must exist.
        metrics: as `fedward.simulations.metrics_file` describes them.
        details: the release's answers on the test split.

    Raises:
        ValueError: the metrics do not follow the schema, or the details do not fit together.
        OutputRefused: the file cannot be written.
    """
    write_atomically(path, render_report(metrics, details).encode("utf-8"))


def render_report(metrics: Mapping[str, Any], details: ReportDetails) -> str:
    """The page as text; arguments and refusals as `write_report`."""
    check_metrics(metrics)
    rounds = rounds_section(metrics)
    sections = [
        rounds,
        roc_section(details, beside=rounds.half),
        confusion_section(details),
        hospitals_section(metrics),
        *measurement_sections(metrics),
        privacy_section(metrics),
        traffic_section(metrics),
        release_section(metrics),
        samples_section(details),
        comparison_section(metrics),
        settings_section(metrics),
        environment_section(metrics),
        refusals_section(metrics),
        glossary_section(),
    ]
    footer = f"Written by Fedward from metrics.json ({metrics['schema']}). Release digest: "
    footer += metrics["release"]["digest"]
    return page(subject(metrics), STYLESHEET, header(metrics, details), sections, footer)
