"""systemd units for both sides (systemd.exec(5), systemd.service(5)): what may be touched, and nothing else.

MemoryDenyWriteExecute is off: torch and the libraries beneath it make code at run time, and fail under it.
AF_NETLINK is what name resolution asks the kernel by; AF_UNIX is the daemon's socket and the journal's.
"""

import sys
from pathlib import Path

from fedward.common.errors import SettingRefused

_PLAIN = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789/._-+")


def unit(side: str, state: Path, user: str) -> str:
    """The unit that runs `fedward SIDE up` on a state folder, as a user of its own.

    Raises:
        SettingRefused: a path or name that a unit would read as something else.
    """
    program = Path(sys.executable).absolute().with_name("fedward")
    for text in (str(program), str(state.absolute()), user):
        if not text or not set(text) <= _PLAIN:
            raise SettingRefused(f"{text!r} has characters that a unit would misread: name a plain one.")
    return f"""[Unit]
Description=Fedward {side}
Wants=network-online.target time-sync.target
After=network-online.target time-sync.target

[Service]
Type=exec
User={user}
Environment=OMP_NUM_THREADS=1
ExecStart={program} {side} up --state {state.absolute()}
Restart=always
RestartSec=5
TimeoutStopSec=90
KillMode=mixed
UMask=0077
LimitNOFILE=8192

ReadWritePaths={state.absolute()}
ProtectSystem=strict
ProtectHome=read-only
ProtectProc=invisible
PrivateTmp=yes
PrivateDevices=yes
NoNewPrivileges=yes
CapabilityBoundingSet=
AmbientCapabilities=
ProtectClock=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
ProtectControlGroups=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
LockPersonality=yes
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallErrorNumber=EPERM

[Install]
WantedBy=multi-user.target
"""
