"""The bundle that a run comes with: settings and a README, no code. Apps are those of the installed fedward.

What Flower makes of it is the same to the bit wherever this version is installed, so a hospital knows the
hash of the one bundle that it accepts without asking anybody.
"""

import hashlib

from flwr.cli.build import build_fab_from_files

STUDY_FOLDER = "study-folder"
README = b"This bundle carries no code.\n"
_PROJECT = """[project]
name = "fedward-study"
version = "1.0.0"
description = "No code: the apps are those of the installed fedward."
license = "Apache-2.0"
dependencies = []

[tool.flwr.app]
publisher = "fedward"
fab-include = ["/README.md"]

[tool.flwr.app.components]
serverapp = "fedward.server.app:app"
clientapp = "fedward.client.app:app"

[tool.flwr.app.config]
study-folder = {study_folder}
"""


def project_file(study_folder: str = '""') -> bytes:
    """The bundle's pyproject.toml; `study_folder` is a TOML string, by default empty."""
    return _PROJECT.format(study_folder=study_folder).encode()


def bundle() -> bytes:
    """The bundle of a deployed study: the folder is named by the run's configuration."""
    return build_fab_from_files({"pyproject.toml": project_file(), "README.md": README})[0]


def bundle_hash(content: bytes) -> str:
    """SHA-256 of a bundle, in hex."""
    return hashlib.sha256(content).hexdigest()
