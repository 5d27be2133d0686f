"""One command, loaded by parts; a refusal is one named sentence and exit code 1."""

import json
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path

import pytest
import typer

from fedward.common import cli
from fedward.common.cli import main, run
from fedward.common.errors import BudgetRefused
from fedward.common.signing import Signer

ReleaseMaker = Callable[..., Path]


@pytest.fixture
def release(make_release: ReleaseMaker, tmp_path: Path) -> Path:
    return make_release(tmp_path / "bundle")


def _plug(monkeypatch: pytest.MonkeyPatch, app: object, extra: str = "hospital") -> None:
    """Make `fedward part` of `app`."""
    module = types.ModuleType("part_of_a_test")
    module.app = app  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "part_of_a_test", module)
    monkeypatch.setitem(cli._PARTS, "part", cli._Part("part_of_a_test:app", extra, "A part."))


def test_help_lists_every_part_and_loads_none(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli, "_load", lambda *_: pytest.fail("loaded a part"))
    assert run(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in ("simulate", "hospital", "edge", "bundle"))


def test_nothing_at_all_shows_help(capsys: pytest.CaptureFixture[str]) -> None:
    run([])
    captured = capsys.readouterr()
    assert "bundle" in captured.out + captured.err


def test_the_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"]) == 0
    assert capsys.readouterr().out.startswith("fedward, version ")


@pytest.mark.parametrize(
    "arguments",
    [["nonsense"], ["--nonsense"], ["bundle", "verify"], ["bundle", "nonsense"], ["edge", "predict", "x"]],
)
def test_wrong_usage_exits_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(arguments) == 2
    assert "Usage" in capsys.readouterr().err


def test_main_exits_with_the_code() -> None:
    with pytest.raises(SystemExit) as caught:
        main(["nonsense"])
    assert caught.value.code == 2


def test_a_function_of_its_own_is_a_single_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def simulate(rounds: int = 1) -> None:
        """Simulate."""
        typer.echo(f"{rounds} rounds")

    _plug(monkeypatch, simulate)
    assert run(["part", "--rounds", "3"]) == 0
    assert capsys.readouterr().out == "3 rounds\n"


def test_an_app_with_one_command_is_that_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    app = typer.Typer()

    @app.command()
    def simulate(rounds: int = 1) -> None:
        typer.echo(f"{rounds} rounds")
        raise typer.Exit(3)

    _plug(monkeypatch, app)
    assert run(["part", "--rounds", "3"]) == 3
    assert run(["part", "--help"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("3 rounds\n")
    assert "completion" not in out


def test_a_refusal_is_one_sentence_and_exit_code_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(as_json: bool = typer.Option(False, "--json")) -> None:
        raise BudgetRefused("It is spent\x1b[2J.")

    _plug(monkeypatch, refuse)
    assert run(["part"]) == 1
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "BudgetRefused: It is spent\\x1b[2J.\n")
    assert run(["part", "--json"]) == 1
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {"error": "BudgetRefused", "message": "It is spent\x1b[2J."}


def test_ctrl_c_exits_with_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    _plug(monkeypatch, interrupt)
    assert run(["part"]) == 130


def test_a_missing_package_is_told_from_a_missing_module_of_our_own(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(cli._PARTS, "part", cli._Part("no_such_package.sub:app", "hospital", ""))
    assert run(["part"]) == 1
    assert "pip install 'fedward[hospital]'" in capsys.readouterr().err
    monkeypatch.setitem(cli._PARTS, "part", cli._Part("fedward.no_such_module:app", "hospital", ""))
    with pytest.raises(ModuleNotFoundError):
        run(["part"])


def test_verify_says_what_it_verified(
    release: Path, trust_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["bundle", "verify", str(release), "--trust", str(trust_file)]) == 0
    line = capsys.readouterr().out
    assert run(["bundle", "verify", str(release), "--trust", str(trust_file), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert line == f"verified: tiny version 1, {found['digest']}\n"
    assert found["verified"] is True


def test_verify_refuses_by_name(
    make_release: ReleaseMaker,
    tmp_path: Path,
    trust_file: Path,
    stranger: Signer,
    capsys: pytest.CaptureFixture[str],
) -> None:
    foreign = make_release(tmp_path / "foreign", by=stranger)
    assert run(["bundle", "verify", str(foreign), "--trust", str(trust_file), "--json"]) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith("SignatureRefused: ")
    assert json.loads(captured.out)["error"] == "SignatureRefused"


def test_inspect_shows_an_unverified_release_and_says_so_first(
    make_release: ReleaseMaker,
    tmp_path: Path,
    trust_file: Path,
    stranger: Signer,
    capsys: pytest.CaptureFixture[str],
) -> None:
    foreign = str(make_release(tmp_path / "foreign", by=stranger, study="a\x1b[2Jb"))
    assert run(["bundle", "inspect", foreign, "--trust", str(trust_file)]) == 0
    out = capsys.readouterr().out
    assert out.startswith("NOT VERIFIED, DO NOT USE. SignatureRefused: ")
    assert '"student": "fp32-cnn"' in out
    assert "\x1b" not in out
    assert run(["bundle", "inspect", foreign, "--trust", str(trust_file), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["verified"], found["error"]) == (False, "SignatureRefused")
    assert found["manifest"]["study"] == "a\x1b[2Jb"


def test_inspect_says_that_a_release_verifies(
    release: Path, trust_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["bundle", "inspect", str(release), "--trust", str(trust_file)]) == 0
    assert capsys.readouterr().out.startswith("verified\ndigest ")


def test_pack_writes_a_tar_that_verifies_and_overwrites_nothing(
    release: Path, trust_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    packed = str(tmp_path / "b.tar")
    assert run(["bundle", "pack", str(release), packed]) == 0
    assert run(["bundle", "verify", packed, "--trust", str(trust_file)]) == 0
    assert run(["bundle", "pack", str(release), packed]) == 1
    assert "OutputRefused" in capsys.readouterr().err


def test_a_release_verifies_in_a_moment(release: Path, trust_file: Path) -> None:
    run(["bundle", "verify", str(release), "--trust", str(trust_file)])
    start = time.perf_counter()
    run(["bundle", "verify", str(release), "--trust", str(trust_file)])
    assert time.perf_counter() - start < 0.3
