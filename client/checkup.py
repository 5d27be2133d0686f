"""What `fedward hospital doctor` looks at; each finding says what is wrong and its cure."""

import importlib.metadata
import os
import shutil
import socket
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fedward.client import checkup_federation
from fedward.client.daemon_client import is_up
from fedward.client.egress_log import LOG
from fedward.client.hospital import Hospital
from fedward.client.registry import Registry
from fedward.client.state_folder import BUDGETS, SECRET_FILE, require_hospital
from fedward.common.errors import Refusal
from fedward.common.flower_tools import LOOPBACK
from fedward.common.ledger import Ledger
from fedward.common.supervision import read_processes

FLOWER = "1.41.0"
_LEAST_FREE_BYTES = 1 << 30
_CONNECT_SECONDS = 3.0


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        subject: what it is.
        wrong: a sentence, or empty where nothing is wrong.
        cure: what to do about it.
    """

    subject: str
    wrong: str = ""
    cure: str = ""


def findings(folder: Path) -> list[Finding]:
    """Look at everything, in the order in which it is needed."""
    looked = [_look("state folder", folder, _folder)]
    if looked[0].wrong:
        return looked
    checks: dict[str, Callable[[Path], tuple[str, str] | None]] = {
        "disk": _disk,
        "permissions": _permissions,
        "version of Flower": _version,
        "data": _data,
        "ledgers": _ledgers,
        "processes": _processes,
        "daemon": _daemon,
        "task port": _port,
        "uplink": _uplink,
    }
    if checkup_federation.is_member(folder):
        checks |= {
            "nginx": checkup_federation.nginx,
            "certificate": checkup_federation.certificate,
            "coordinator": checkup_federation.coordinator,
            "clock": checkup_federation.clock,
        }
    return looked + [_look(subject, folder, check) for subject, check in checks.items()]


def _look(subject: str, folder: Path, check: Callable[[Path], tuple[str, str] | None]) -> Finding:
    try:
        found = check(folder)
    except Refusal as refusal:
        return Finding(subject, f"{refusal.name}: {refusal}", "Do what it says.")
    except OSError as error:
        return Finding(
            subject, f"It cannot be looked at ({error.strerror}).", "Run this as the hospital's user."
        )
    except Exception as error:  # whatever a damaged file makes of a reader: doctor itself never breaks
        return Finding(
            subject,
            f"It cannot be read ({type(error).__name__}).",
            "Put back its newest copy, or ask for help.",
        )
    return Finding(subject) if found is None else Finding(subject, *found)


def _folder(folder: Path) -> tuple[str, str] | None:
    require_hospital(folder)
    return None


def _disk(folder: Path) -> tuple[str, str] | None:
    free = shutil.disk_usage(folder).free
    if free < _LEAST_FREE_BYTES:
        return (
            f"Only {free >> 20} MiB are free.",
            "Free at least 1 GiB: a round that cannot be stored is not run.",
        )
    return None


def _permissions(folder: Path) -> tuple[str, str] | None:
    if not os.access(folder, os.W_OK):
        return "This user may not write the state folder.", f"Run as its owner, or `chown` {folder}."
    secret = folder / SECRET_FILE
    if secret.exists() and stat.S_IMODE(secret.stat().st_mode) & 0o077:
        return f"{SECRET_FILE} can be read by others.", f"Run `chmod 600 {secret}`."
    return None


def _version(folder: Path) -> tuple[str, str] | None:
    found = importlib.metadata.version("flwr")
    if found != FLOWER:
        return f"flwr {found} is installed, {FLOWER} is needed.", f"Run `pip install flwr=={FLOWER}`."
    return None


def _data(folder: Path) -> tuple[str, str] | None:
    Hospital(folder)
    return None


def _ledgers(folder: Path) -> tuple[str, str] | None:
    if (folder / LOG).exists():
        Ledger.open(folder / LOG)
    if (folder / BUDGETS).is_dir():
        for budget in Registry(folder / BUDGETS).budgets():
            budget.require_whole()
    return None


def _processes(folder: Path) -> tuple[str, str] | None:
    if read_processes(folder) is None:
        return "Nothing runs here.", "Start it with `fedward hospital up`."
    return None


def _daemon(folder: Path) -> tuple[str, str] | None:
    if not is_up(folder):
        return (
            "The daemon does not answer.",
            f"See {folder / 'logs' / 'daemon.log'}; `fedward hospital up` starts it.",
        )
    return None


def _port(folder: Path) -> tuple[str, str] | None:
    processes = read_processes(folder)
    if processes is not None and not _connects(LOOPBACK, int(processes["port"])):
        return "The SuperNode takes no tasks.", f"See {folder / 'logs' / 'supernode.log'}."
    return None


def _uplink(folder: Path) -> tuple[str, str] | None:
    processes = read_processes(folder)
    if processes is None:
        return None
    host, _, port = str(processes["superlink"]).rpartition(":")
    if not _connects(host.strip("[]"), int(port)):
        return (
            f"Nothing answers at {processes['superlink']}.",
            f"See {folder / 'logs' / 'gateway.log'}, and in a trial --superlink of `fedward hospital up`.",
        )
    return None


def _connects(host: str, port: int) -> bool:
    try:
        with socket.create_connection((host, port), _CONNECT_SECONDS):
            return True
    except OSError:
        return False
