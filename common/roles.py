"""Who may do what on this host: three roles, given to users of the operating system by name.

    coordinator = ["alice"]           # starts studies, enrols and revokes sites, rotates keys
    auditor = ["bob"]                 # reads logs and lists
    site-administrator = ["carol"]    # a hospital's: joins, accepts, renews

The file is ``roles.toml`` in a state folder, written by its owner. It keeps people on one host apart who
share an account's commands (through `sudo`, say), and names them in the log. It cannot stop whoever may
write the state folder itself: that is the folder's own mode, 0700.
"""

import os
import pwd
import tomllib
from collections.abc import Mapping
from pathlib import Path

from fedward.common.errors import RoleRefused
from fedward.common.files import read_bounded, write_atomically

ROLES_FILE = "roles.toml"
COORDINATOR, AUDITOR, SITE_ADMINISTRATOR = "coordinator", "auditor", "site-administrator"
ROLES = (COORDINATOR, AUDITOR, SITE_ADMINISTRATOR)
_LIMIT_BYTES = 1 << 16
_NOBODY = 2**32 - 1  # what the kernel says of a process that no login started
_LOGIN = Path("/proc/self/loginuid")


def acting_user() -> str:
    """Who typed the command: the user who logged in, which `su` and `sudo` do not change, else the process's.

    A user without a name is known by number.
    """
    number = os.getuid()
    try:
        login = int(_LOGIN.read_text())
        number = number if login == _NOBODY else login
    except (OSError, ValueError):
        pass  # a kernel without it
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return str(number)


def write_roles(folder: Path, given: Mapping[str, str]) -> None:
    """Write a first file that gives each role of `given` to one user.

    Raises:
        OutputRefused: it cannot be written.
    """
    lines = [f"{role} = {_toml_list(given.get(role))}" for role in ROLES]
    write_atomically(folder / ROLES_FILE, ("\n".join(lines) + "\n").encode(), 0o600)


def require_role(folder: Path, *roles: str) -> str:
    """The acting user, if one of `roles` is theirs; a folder without the file lets whoever can read it.

    Raises:
        RoleRefused: the file gives them none of these roles, or is not what it must be.
    """
    user, path = acting_user(), folder / ROLES_FILE
    if not os.path.lexists(path):
        return user
    given = _given(path)
    if not any(user in given.get(role, ()) for role in roles):
        raise RoleRefused(
            f"{user} has no role here that may do this ({' or '.join(roles)}): the folder's owner gives "
            f"roles in {path}."
        )
    return user


def _given(path: Path) -> dict[str, list[str]]:
    try:
        found = tomllib.loads(read_bounded(path, _LIMIT_BYTES, refusal=RoleRefused).decode())
    except ValueError as error:
        raise RoleRefused(f"{path} is not TOML: {error}.") from error
    for role, users in found.items():
        if role not in ROLES or not isinstance(users, list) or not all(isinstance(u, str) for u in users):
            raise RoleRefused(
                f"{path} must give roles ({', '.join(ROLES)}) to lists of users; {role!r} does not."
            )
    return found


def _toml_list(user: str | None) -> str:
    return "[]" if user is None else f'["{user}"]'
