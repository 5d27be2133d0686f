"""`fedward hospital up`: the daemon, Flower's SuperNode, the task runner and the gateway, kept running.

The SuperNode only dials out, by the hospital's own gateway, an nginx on loopback with the site's certificate.
Its own port, on loopback, takes tasks with a secret that stands in the state folder; the daemon has no port
at all.
"""

import argparse
import sys
import threading
from contextlib import closing
from pathlib import Path

from fedward.client.gateway_process import MembershipWatch, gateway_program
from fedward.client.prometheus import HospitalMetrics
from fedward.client.state_folder import SECRET_FILE, SITE_LOCK, require_hospital
from fedward.client.uplink import Uplink, add_options, uplink_of
from fedward.common.errors import Refusal
from fedward.common.exposition import metrics_served
from fedward.common.flower_tools import LOOPBACK, free_port, keep_secret, quiet_environment
from fedward.common.locks import only_holder
from fedward.common.logs import log_to_stderr
from fedward.common.supervision import Program, Supervisor, until_signalled

_LOCK_SECONDS = 2.0


def command(
    folder: Path, uplink: Uplink | None, approved: list[str], metrics_port: int | None = None
) -> list[str]:
    """This module as a program: it loads neither torch nor the data, and stays small for months."""
    parts = [sys.executable, "-m", "fedward.client.site", "--state", str(folder)]
    parts += [] if uplink is None else uplink.options()
    parts += [] if metrics_port is None else ["--metrics-port", str(metrics_port)]
    return parts + [part for bundle in approved for part in ("--approve", bundle)]


def run_site(folder: Path, uplink: Uplink | None, approved: list[str], until: threading.Event) -> None:
    """Keep a hospital's processes running until the event is set.

    Args:
        folder: the hospital's state folder.
        uplink: in a trial, how SuperLink is reached; None by the hospital's own gateway, as a member.
        approved: SHA-256 of further bundles than this version's own.
        until: ends all.

    Raises:
        DatasetRefused: the folder is no hospital's.
        EnrolmentRefused: the hospital is in no federation.
        OutputRefused: it is in use, or cannot be written.
        EngineFailed, GatewayFailed: Flower or nginx is not installed.
    """
    folder = require_hospital(folder)
    sentence = f"{folder} is up already: stop the other `fedward hospital up`, or name another state folder."
    with only_holder(folder / SITE_LOCK, _LOCK_SECONDS, sentence):
        folder.chmod(0o700)
        keep_secret(folder / SECRET_FILE)
        port, own = free_port(), None if uplink is not None else free_port()
        superlink = f"{LOOPBACK}:{own}" if uplink is None else uplink.superlink
        options = ["--gateway", str(own)] if uplink is None else uplink.options()
        programs = _programs(folder, options, approved, port)
        if own is not None:
            programs.insert(0, gateway_program(folder, own))
        supervisor = Supervisor(folder, programs, {"superlink": superlink, "port": port})
        watch = None if own is None else MembershipWatch(folder, own, supervisor.restart)
        supervisor.run(until, (lambda: None) if watch is None else watch.tick)


def main() -> int:
    """Run the command and return its exit code."""
    parser = argparse.ArgumentParser(prog="fedward.client.site", description="A hospital's processes.")
    parser.add_argument("--state", type=Path, required=True, help="The hospital's state folder.")
    add_options(parser)
    parser.add_argument("--approve", action="append", default=[], help="SHA-256 of a further bundle.")
    parser.add_argument("--metrics-port", type=int, help="Of loopback, for Prometheus; off without it.")
    options = parser.parse_args()
    log_to_stderr()
    try:
        uplink = uplink_of(options, options.state) if options.superlink else None
        with (
            closing(HospitalMetrics(options.state)) as metrics,
            metrics_served(options.metrics_port, metrics),
        ):
            run_site(options.state, uplink, options.approve, until_signalled())
    except Refusal as refusal:
        print(f"{refusal.name}: {refusal}", file=sys.stderr)
        return 1
    return 0


def _programs(folder: Path, uplink: list[str], approved: list[str], port: int) -> list[Program]:
    environment = quiet_environment(folder / "flower")
    runtime = f"{LOOPBACK}:{port}"
    own = [sys.executable, "-m"]
    supernode = [
        *own, "fedward.client.supernode", "--state", str(folder), *uplink, "--",
        "--isolation", "process", "--superexec-auth-secret-file", str(folder / SECRET_FILE),
        "--host", LOOPBACK, "--port", str(port),
    ]  # fmt: skip
    runner = [*own, "fedward.client.task_runner", "--state", str(folder), "--runtime", runtime]
    for bundle in approved:
        runner += ["--approve", bundle]
    return [
        Program("daemon", [*own, "fedward.client.daemon", "--state", str(folder)]),
        Program("supernode", supernode, environment),
        # The SuperNode would wait a minute, or for ever, for the reply that a dead task runner had in hand.
        Program("task-runner", runner, environment, ends=("supernode",)),
    ]


if __name__ == "__main__":
    sys.exit(main())
