"""Publishes finished studies in processes of their own: torch and the exporter stay out of the supervisor."""

import subprocess
import sys
from pathlib import Path

from fedward.common.files import make_folder
from fedward.common.supervision import LOGS, end_with_parent
from fedward.server.study_folder import PUBLISHED, StudyFolder


class Publisher:
    """One process a study, started when it is first asked after."""

    def __init__(self, state: Path) -> None:
        """Publish for the coordinator of this state folder."""
        self._state = state
        self._running: dict[Path, subprocess.Popen[bytes]] = {}

    def look(self, folder: StudyFolder) -> str | None:
        """Begin where it is needed; None while it works, then empty, or why it was refused."""
        if (folder.path / PUBLISHED).exists():
            self._running.pop(folder.path, None)
            return ""
        process = self._running.get(folder.path)
        if process is None:
            self._running[folder.path] = self._started(folder.path)
            return None
        if process.poll() is None:
            return None
        del self._running[folder.path]
        return "" if process.returncode == 0 else _said(process, folder)

    def _started(self, folder: Path) -> "subprocess.Popen[bytes]":
        make_folder(self._state / LOGS, 0o700)
        command = [sys.executable, "-m", "fedward.server.publishing"]
        with (self._state / LOGS / "publishing.log").open("ab") as log:
            return subprocess.Popen(
                [*command, "--state", str(self._state), "--study", str(folder)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
                preexec_fn=end_with_parent,
            )


def _said(process: "subprocess.Popen[bytes]", folder: StudyFolder) -> str:
    """Its one line, which is a refusal's name and sentence; nothing else is shown of what it broke by."""
    said = (process.stdout.read() if process.stdout else b"").decode(errors="replace").strip()
    name, colon, _ = said.partition(": ")
    if colon and name.isidentifier():
        return said
    return f"EngineFailed: The release of {folder.path} was not made; see logs/publishing.log."
