"""metrics.json's ``measurement``: what hospitals said of the released model under privacy, where asked."""

from typing import Any

from fedward.common.config import Study
from fedward.common.measurement import FISHER, METRIC, measurements
from fedward.server.measuring import read_measured
from fedward.server.private_figures import private_figures
from fedward.server.study_folder import StudyFolder

ON = "the hospitals' own training records"


def measurement_entry(folder: StudyFolder, study: Study) -> dict[str, Any]:
    """``{"measurement": ...}``, or nothing where the study asked for none.

    Raises:
        CheckpointRefused: ``measured.json`` is damaged.
    """
    asked = measurements(study.local)
    if not asked:
        return {}
    found = read_measured(folder, study)
    entry: dict[str, Any] = {
        "on": ON,
        "hospitals": len(found.hospitals),
        "num_examples": found.num_examples,
        "noise_multipliers": {kind: mechanism.noise_multiplier for kind, mechanism in asked.items()},
        "figures": None,
        "standard_errors": None,
        "fisher": folder.fisher.name if FISHER in asked else None,
        "uplink_bytes": found.uplink_bytes,
        "downlink_bytes": found.downlink_bytes,
        "refusals": found.refusals,
    }
    if METRIC in asked:
        entry |= private_figures(study.local, found.sums[METRIC], len(found.hospitals))
    return {"measurement": entry}
