"""A roles file lets a command's user do what their role may, and nobody else."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedward.common import roles
from fedward.common.errors import RoleRefused
from fedward.common.roles import AUDITOR, COORDINATOR, SITE_ADMINISTRATOR, require_role, write_roles


@pytest.fixture
def as_user(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    return lambda name: monkeypatch.setattr(roles, "acting_user", lambda: name)


def test_a_role_opens_what_it_is_for_and_nothing_else(tmp_path: Path, as_user: Callable[[str], None]) -> None:
    write_roles(tmp_path, {COORDINATOR: "alice", AUDITOR: "bob"})
    as_user("alice")
    assert require_role(tmp_path, COORDINATOR) == "alice"
    as_user("bob")
    assert require_role(tmp_path, COORDINATOR, AUDITOR) == "bob"
    with pytest.raises(RoleRefused, match=r"bob .*coordinator"):
        require_role(tmp_path, COORDINATOR)
    as_user("carol")
    with pytest.raises(RoleRefused):
        require_role(tmp_path, COORDINATOR, AUDITOR, SITE_ADMINISTRATOR)


def test_without_a_file_whoever_can_read_the_folder_may(tmp_path: Path) -> None:
    assert require_role(tmp_path, COORDINATOR) == roles.acting_user()


@pytest.mark.parametrize(
    "text", ['owner = ["alice"]', 'coordinator = "alice"', "coordinator = [1]", "coordinator =", "\xff\x00"]
)
def test_a_file_that_says_something_else_gives_nobody_a_role(
    tmp_path: Path, as_user: Callable[[str], None], text: str
) -> None:
    as_user("alice")
    (tmp_path / "roles.toml").write_text(text)
    with pytest.raises(RoleRefused, match=r"roles\.toml"):
        require_role(tmp_path, COORDINATOR)


def test_a_link_to_nowhere_is_no_missing_file(tmp_path: Path) -> None:
    (tmp_path / "roles.toml").symlink_to(tmp_path / "nowhere")
    with pytest.raises(RoleRefused):
        require_role(tmp_path, COORDINATOR)


def test_who_logged_in_counts_not_whom_they_became(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    login = tmp_path / "loginuid"
    monkeypatch.setattr(roles, "_LOGIN", login)
    monkeypatch.setattr(os, "getuid", lambda: 0)
    assert roles.acting_user() == "root"
    login.write_text("4294967294")
    assert roles.acting_user() == "4294967294"
    login.write_text(str(2**32 - 1))  # nobody logged in: a service
    assert roles.acting_user() == "root"


def test_commands_ask_for_the_role(
    fedward: Callable[..., Any], tmp_path: Path, as_user: Callable[[str], None]
) -> None:
    office = tmp_path / "office"
    as_user("alice")
    done = fedward("coordinator", "init", "--name", "o", "--host", "localhost", "--state", office)
    assert done.code == 0, done.err
    (office / "roles.toml").write_text('coordinator = ["carol"]\nauditor = ["bob"]\n')
    writes = (
        ["enrol", tmp_path / "request"],
        ["revoke", "site-1"],
        ["rotate"],
    )
    for user in ("alice", "bob"):
        as_user(user)
        monitored = [fedward("coordinator", *typed, "--state", office, "--json") for typed in writes]
        assert {json.loads(one.out)["error"] for one in monitored} == {"RoleRefused"}
    assert fedward("coordinator", "log", "--state", office).code == 0
    as_user("alice")
    assert fedward("coordinator", "log", "--state", office).code == 1
    state = tmp_path / "state"
    state.mkdir()
    (state / "roles.toml").write_text('site-administrator = ["dora"]\n')
    for typed in (["join", "--name", "a", "--images", 10], ["renew"], ["accept", tmp_path / "answer"]):
        assert "RoleRefused" in fedward("hospital", *typed, "--state", state).err
