"""One nginx in a folder: checked, started, reloaded and stopped by its process number, never by name.

A gateway is a folder that holds ``nginx.conf`` and everything that nginx writes, so that no root is
needed and two gateways of one host know nothing of each other.
"""

import contextlib
import hashlib
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import NoReturn

from fedward.common.errors import GatewayFailed
from fedward.common.files import make_folder, read_bounded, write_atomically
from fedward.common.nginx_workers import end_workers, takes_connections

CONFIGURATION, PID = "nginx.conf", "nginx.pid"
ACCESS_LOG, ERROR_LOG = "access.log", "error.log"
_TEMPORARY, _START_LOG, _LOADED = "temporary", "start.log", "loaded"
_PLACES = ("/usr/sbin", "/usr/local/sbin", "/opt/homebrew/bin")  # which are not on everybody's PATH
_PAUSE_SECONDS = 0.01
_LARGEST_LOG_BYTES = 64 << 20
_PLAIN_PATH = re.compile(r"[\w./+@:,= -]+", re.ASCII)


class Nginx:
    """The nginx of one folder. Any process of its owner may reload or stop it."""

    def __init__(self, folder: Path) -> None:
        """Use `folder`, which `configure` makes."""
        self.folder = folder.absolute()
        self._child: subprocess.Popen[bytes] | None = None
        self._wanted = ""

    @property
    def pid(self) -> int | None:
        """This folder's master process, if one runs; a number that another process has by now is not it."""
        try:
            pid = int(read_bounded(self.folder / PID, 32, refusal=GatewayFailed))
            command = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
        except (GatewayFailed, ValueError, OSError):
            return None
        is_master = command.startswith("nginx: master process")
        return pid if is_master and str(self.folder / CONFIGURATION) in command else None

    def configure(self, text: str, *files: Path) -> None:
        """Write the configuration, once nginx accepts it; a refused one changes nothing.

        Args:
            files: that it names, and on whose contents nginx's behaviour depends too.

        Raises:
            GatewayFailed: nginx is missing, or refuses the text; the sentence says what it said.
            OutputRefused: the folder cannot be written.
        """
        make_folder(self.folder, 0o700)
        make_folder(self.folder / _TEMPORARY, 0o700)
        draft = self.folder / "nginx.conf.new"
        write_atomically(draft, text.encode(), 0o600)
        try:
            self._check(draft)
            write_atomically(self.folder / CONFIGURATION, text.encode(), 0o600)
        finally:
            draft.unlink(missing_ok=True)
        whole = hashlib.sha256(text.encode())
        for path in files:
            whole.update(hashlib.sha256(path.read_bytes()).digest())
        self._wanted = whole.hexdigest()

    def take_over(self) -> bool:
        """Reload what runs on something else than was configured last; says whether there was need.

        What nginx runs on is kept in a file, so that a process that dies between writing a configuration and
        reloading it leaves the work to the next, not undone.

        Raises:
            GatewayFailed: it goes on as it was.
        """
        if self.pid is None or self._loaded() == self._wanted:
            return False
        self.reload()
        return True

    def start(self, wait_seconds: float = 10.0) -> None:
        """Start, or, where one was left running by a parent that died, take it over with what is configured.

        Raises:
            GatewayFailed: it does not start; the sentence says what nginx said.
        """
        if self.pid is not None:
            self.reload()
            return
        (self.folder / PID).unlink(missing_ok=True)
        self.end_orphans()
        command = self._command()
        with (self.folder / _START_LOG).open("wb") as log:
            self._child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        deadline = time.monotonic() + wait_seconds
        while self.pid is None or not self._workers():
            if self._child.poll() is not None or time.monotonic() > deadline:
                raise self._did_not_start()
            time.sleep(_PAUSE_SECONDS)
        self._note_loaded()

    def become(self) -> NoReturn:
        """Let this very process be nginx, with what is configured, for a supervisor that watches it.

        Whatever an earlier one left is ended first: a master whose parent died, and the workers of a master
        that was killed, which would go on with the old configuration and keep the port.

        Raises:
            GatewayFailed: nginx is not installed.
        """
        command = self._command()
        self.stop()
        self.end_orphans()
        (self.folder / PID).unlink(missing_ok=True)
        self._note_loaded()
        os.execv(command[0], command)  # noqa: S606 - it keeps this process's id

    def end_orphans(self) -> None:
        """End workers of this folder that have no master any more."""
        if self.pid is None:
            end_workers(self.folder)

    def _command(self) -> list[str]:
        return [program(), "-p", str(self.folder), "-c", str(self.folder / CONFIGURATION)]

    def reload(self, wait_seconds: float = 10.0) -> None:
        """Take over what is configured; returns once no process of the old configuration takes connections.

        Requests that are being answered are finished by the old processes: other sites notice nothing.

        Raises:
            GatewayFailed: none runs, or it goes on as it was.
        """
        pid = self.pid
        if pid is None:
            raise GatewayFailed(f"No gateway runs in {self.folder}: start it.")
        old = self._workers()
        os.kill(pid, signal.SIGHUP)
        deadline = time.monotonic() + wait_seconds
        while not (self._workers() - old) or any(map(takes_connections, old)):
            if time.monotonic() > deadline:
                raise GatewayFailed(
                    f"The gateway goes on as it was configured before: {self._last_words()}; set that right "
                    "and reload it."
                )
            time.sleep(_PAUSE_SECONDS)
        self._note_loaded()

    def stop(self, wait_seconds: float = 5.0) -> None:
        """Let requests end for `wait_seconds`, then end them; nothing happens where none runs."""
        pid = self.pid
        for number in (signal.SIGQUIT, signal.SIGTERM, signal.SIGKILL):
            if pid is None:
                break
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
            pid = self._left_after(wait_seconds)
        if self._child is not None:
            self._child.wait(wait_seconds)

    def rotate_logs(self, largest_bytes: int = _LARGEST_LOG_BYTES) -> None:
        """Begin new logs where one is larger; one older file of each is kept."""
        large = [
            path
            for path in (self.folder / ACCESS_LOG, self.folder / ERROR_LOG)
            if path.exists() and path.stat().st_size > largest_bytes
        ]
        for path in large:
            path.replace(path.with_name(path.name + ".1"))
        if large and (pid := self.pid) is not None:
            os.kill(pid, signal.SIGUSR1)

    def _loaded(self) -> str:
        try:
            return read_bounded(self.folder / _LOADED, 100, refusal=GatewayFailed).decode()
        except (GatewayFailed, ValueError):
            return ""  # none, or not to be trusted: reload

    def _note_loaded(self) -> None:
        write_atomically(self.folder / _LOADED, self._wanted.encode(), 0o600)

    def _check(self, configuration: Path) -> None:
        done = subprocess.run(
            [program(), "-t", "-q", "-p", str(self.folder), "-c", str(configuration)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        if done.returncode != 0:
            raise GatewayFailed(f"nginx does not accept the gateway's configuration: {_said(done.stderr)}.")

    def _workers(self) -> set[int]:
        pid = self.pid
        try:
            text = Path(f"/proc/{pid}/task/{pid}/children").read_text() if pid else ""
        except OSError:
            return set()
        return {child for child in map(int, text.split()) if takes_connections(child)}

    def _left_after(self, seconds: float) -> int | None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and self.pid is not None:
            if self._child is not None:
                self._child.poll()  # a child that ended is there until its parent has looked
            time.sleep(_PAUSE_SECONDS)
        return self.pid

    def _did_not_start(self) -> GatewayFailed:
        if self._child is not None:
            self._child.kill()
            self._child.wait()
        said = (self.folder / _START_LOG).read_text(errors="replace")
        return GatewayFailed(f"The gateway does not start: {_said(said)}.")

    def _last_words(self) -> str:
        try:
            text = (self.folder / ERROR_LOG).read_bytes()[-8192:].decode(errors="replace")
        except OSError:
            text = ""
        return _said("\n".join(line for line in text.splitlines() if "[emerg]" in line or "[error]" in line))


def program() -> str:
    """Where nginx is.

    Raises:
        GatewayFailed: it is not installed.
    """
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), *_PLACES])
    found = shutil.which("nginx", path=path)
    if found is None:
        raise GatewayFailed(
            "The gateways need nginx: run `sudo apt-get install --yes --no-install-recommends nginx`."
        )
    return found


def settings(folder: Path) -> str:
    """The part of a configuration that keeps everything in `folder`, and says how to log.

    Raises:
        GatewayFailed: the folder's path has characters that nginx would read as something else.
    """
    # A worker that root starts becomes `nobody`, who may not read a folder of mode 0700.
    user = "user root;\n" if os.geteuid() == 0 else ""
    temporary = "\n".join(
        f"  {kind}_temp_path {quoted(folder / _TEMPORARY / kind)};"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    return f"""daemon off;
{user}pid {quoted(folder / PID)};
error_log {quoted(folder / ERROR_LOG)} notice;
worker_processes 2;
worker_shutdown_timeout 120s;
events {{ worker_connections 1024; }}
http {{
  server_tokens off;
  default_type application/octet-stream;
  log_format lines escape=json '{{"time":"$time_iso8601","from":"$remote_addr","subject":"$ssl_client_s_dn",'
    '"verified":"$ssl_client_verify","method":"$request_method","uri":"$request_uri","status":$status,'
    '"received":$request_length,"sent":$bytes_sent,"seconds":$request_time}}';
  access_log {quoted(folder / ACCESS_LOG)} lines;
{temporary}
"""


def quoted(path: Path) -> str:
    """A path as a configuration spells it.

    Raises:
        GatewayFailed: it has a quote, a `$` or the like, which nginx would read as something else.
    """
    whole = str(path.absolute())
    if not _PLAIN_PATH.fullmatch(whole):
        raise GatewayFailed(
            f"{whole} has characters that nginx cannot be told of: name a plain --state folder."
        )
    return f'"{whole}"'


def _said(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return "; ".join(lines[-2:]).rstrip(".") or "it does not say why"
