"""A finished study's release, signed by the coordinator and put where its sites can fetch it.

    python -m fedward.server.publishing --state FOLDER --study FOLDER

Whatever was done of it before a crash is not done again: the release is made whole or not at all, then put on
the shelf (`fedward.server.shelf`), then noted in the study's folder.
"""

import argparse
import hashlib
import json
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

from fedward.common.bundle import pack_tar, read_bundle
from fedward.common.config import Study
from fedward.common.errors import Refusal
from fedward.common.files import canonical_json, write_atomically
from fedward.common.instants import spelled, utc_now
from fedward.common.manifest import release_digest
from fedward.common.measurement import measurements
from fedward.common.mechanisms import Mechanism
from fedward.common.privacy import epsilon
from fedward.common.release_index import Listed
from fedward.server.coordinator import Coordinator
from fedward.server.release import SitePrivacy, final_latents, make_release
from fedward.server.shelf import put
from fedward.server.study_folder import PUBLISHED, StudyFolder


def publish(coordinator: Coordinator, folder: StudyFolder, now: datetime) -> Listed:
    """Make, sign and publish a study's release; what was done of it before is not done again.

    Raises:
        CheckpointRefused: the study's closed rounds cannot be read, or `final.npy` is not theirs.
        GoldenRefused, BundleRefused, OutputRefused: as `make_release`.
    """
    study = folder.study()
    signer = coordinator.signer(now)
    if not folder.release.exists():
        make_release(folder, final_latents(folder, study), site_costs(study), signer, {"engine": "deployed"})
    bundle = read_bundle(folder.release, [signer.public()])
    tar = pack_tar(folder.release)
    name = f"{hashlib.sha256(tar).hexdigest()}.tar"
    entry = Listed(study.name, study.version, release_digest(bundle.manifest), name, len(tar), spelled(now))
    with coordinator.lock:
        put(coordinator, entry, tar, study.parent)
    write_atomically(folder.path / PUBLISHED, canonical_json(entry.__dict__))
    return entry


def site_costs(study: Study) -> list[SitePrivacy]:
    """What the whole study costs each site, by PRV: the most, for a site that missed rounds spent less."""
    local = study.local
    if study.target_epsilon is None:
        return [SitePrivacy(hospital.name, None, None) for hospital in study.hospitals]
    steps = Mechanism(local.noise_multiplier, local.sample_rate, local.local_steps * study.rounds)
    spent = epsilon([steps, *measurements(local).values()], local.target_delta)
    return [SitePrivacy(hospital.name, spent, local.target_delta) for hospital in study.hospitals]


def main() -> int:
    """Publish; prints the entry, or a refusal by name, and returns its exit code."""
    parser = argparse.ArgumentParser(prog="fedward.server.publishing", description="Publishes a release.")
    parser.add_argument("--state", type=Path, required=True, help="The coordinator's state folder.")
    parser.add_argument("--study", type=Path, required=True, help="The study's folder.")
    options = parser.parse_args()
    try:
        entry: dict[str, Any] = publish(
            Coordinator(options.state), StudyFolder(options.study), utc_now()
        ).__dict__
    except Refusal as refusal:
        print(f"{refusal.name}: {refusal}")
        return 1
    print(json.dumps(entry))
    return 0


if __name__ == "__main__":
    sys.exit(main())
