"""The house itself: floors, circles, public names and their types, import time, the build files."""

import ast
import importlib.util
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from tests.typed_api import use_all

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "emcore"

# The rooms from the ground up (docs/architecture.md). A file imports its own room and those below it; systems is the
# uppermost, so the core imports no system.
GROUND = ("errors", "lazy", "system", "threads", "reading", "files", "locks", "progress", "png", "cache", "memory")
NO_TORCH = ("kernels", "config", "cards", "volumes", "segment", "settings", "synth", "metrics", "record", "results",
            "decode", "blocks", "report")
TORCH = ("models", "losses", "data", "engine", "prediction", "smoke", "new", "warm", "systems")
ROOMS = ("ground", *NO_TORCH, *TORCH)
TOPMOST = ("__main__", "legacy_v1", "scripts")  # commands, which may start anything
FACES = ("emcore", "emcore.volumes", "emcore.segment", "emcore.metrics", "emcore.decode", "emcore.prediction")
# functions of a face that still take more than eight parameters
TOO_MANY: set[str] = set()


def room(module: str) -> str:
    """The room that a module stands in; the ground for emcore itself."""
    name = [*module.split("."), "errors"][1]
    return "ground" if name in GROUND else name


@cache
def modules() -> dict[str, Path]:
    """Every module of emcore by its name."""
    paths = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in sorted(PACKAGE.rglob("*.py"))}
    return {name.removesuffix(".__init__"): path for name, path in paths.items() if room(name) != "scripts"}


@cache
def public(face: str) -> dict[str, str]:
    """The public names of a package, each with the module that holds it, as its stub or its imports say."""
    place = PACKAGE.joinpath(*face.split(".")[1:], "__init__.pyi")
    body = ast.parse((place if place.exists() else place.with_suffix(".py")).read_text()).body
    found = {alias.name: node.module for node in body if isinstance(node, ast.ImportFrom) for alias in node.names}
    if place.exists():
        return found
    names = next(ast.literal_eval(node.value) for node in body if isinstance(node, ast.Assign)
                 and node.targets[0].id == "__all__")
    return {name: found.get(name, face) for name in names}


def executed(node: ast.AST) -> Iterator[ast.AST]:
    """Everything below a node, also inside functions, but for what only a type checker reads."""
    for child in ast.iter_child_nodes(node):
        yield child
        if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            continue
        yield from executed(child)


@cache
def imports(path: Path) -> set[str]:
    """Every module that a file imports anywhere; what it takes from a face counts as its file."""
    known, found = modules(), set()
    for node in executed(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} uses a relative import"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                if full in known:
                    found |= {full, *(public(full).values() if full in FACES else ())}
                else:
                    found.add(public(node.module).get(alias.name, node.module) if node.module in FACES
                              else node.module)
    return found


# ---- floors


def test_every_file_stands_in_a_room_and_every_room_exists():
    assert {room(name) for name in modules()} - set(TOPMOST) == set(ROOMS)
    assert all((PACKAGE / f"{name}.py").exists() for name in GROUND)


def test_imports_only_go_down():
    wrong = [f"{name} imports {target}" for name, path in modules().items() if room(name) in ROOMS
             for target in imports(path) if target.split(".")[0] == "emcore" and room(target) not in TOPMOST
             and ROOMS.index(room(target)) > ROOMS.index(room(name))]
    assert wrong == []


def test_no_system_imports_another():
    """A file beside the folders of the systems may know them all, as the scripts do."""
    for name, path in modules().items():
        if room(name) == "systems" and (name.count(".") > 2 or path.name == "__init__.py"):
            own = name.split(".")[:3]
            assert [target for target in imports(path) if target.startswith("emcore.systems.")
                    and target.split(".")[:3] != own] == [], name


def test_no_files_import_each_other_in_a_circle():
    known = modules()
    try:
        TopologicalSorter({name: (imports(path) & known.keys()) - {name} for name, path in known.items()}).prepare()
    except CycleError as error:
        raise AssertionError(f"a circle: {' <- '.join(error.args[1])}") from None


def test_nothing_imports_the_scripts():
    for path in [*modules().values(), *(ROOT / "tests").glob("*.py"), *(ROOT / "bench").glob("*.py")]:
        assert not imports(path) & {"train", "infer", "evaluate"}, path


@pytest.mark.parametrize("name", ["ground", *NO_TORCH])
def test_a_room_below_torch_does_without_it(name):
    inside = [module for module, path in modules().items() if room(module) == name and not needs_extra(path)]
    assert not [module for module in inside if "torch" in {found.split(".")[0] for found in imports(modules()[module])}]
    code = ("import sys; from importlib import import_module; sys.modules['torch'] = None\n"
            f"for name in {inside}: [getattr(import_module(name), one) for one in "
            "getattr(import_module(name), '__all__', []) if name != 'emcore']")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def needs_extra(path: Path) -> bool:
    """Whether a file is of a format whose package is not installed here."""
    extras = {"zarr", "tifffile", "imagecodecs", "mrcfile"} & imports(path)
    return any(importlib.util.find_spec(extra) is None for extra in extras)


# ---- public names


def test_importing_emcore_is_quick_and_brings_no_torch():
    code = ("import time, sys; start = time.perf_counter(); import emcore; seconds = time.perf_counter() - start\n"
            "heavy = [name for name in ('torch', 'numba', 'h5py', 'numpy') if name in sys.modules]\n"
            "print(seconds, heavy); sys.exit(bool(heavy) or seconds > 0.3)")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


# each order in a process of its own, forked from one that has loaded what is slow; whatever came first, the names are
# looked up, then every file of the package is imported, then the names are looked up again
ORDERS = """
import os, sys
from importlib import import_module
import numpy, h5py, numba, torch
try:
    import zarr
except ImportError:
    pass  # the extra zarr
assert not [name for name in sys.modules if name.startswith("emcore")]

def check(first, face, homes, files):
    for module in first:
        import_module(module)
    resolve(first, face, homes)
    for module in files:
        import_module(module)
    resolve(f"{first} and all files", face, homes)

def resolve(first, face, homes):
    for name, home in homes.items():
        value = getattr(import_module(face), name)
        wanted = import_module(f"{face}.{name}") if home == "emcore" else getattr(import_module(home), name)
        assert value is wanted, f"after {first} {face}.{name} is {value}"

def run(*arguments):
    child = os.fork()
    if not child:
        try:
            check(*arguments)
        except BaseException as error:
            print(f"{arguments[0]}: {error!r}", flush=True)
            os._exit(1)
        os._exit(0)
    return os.waitpid(child, 0)[1]

failed = 0
for face, (homes, files) in TABLE.items():
    for first in ([face], files):
        failed += run(first, face, homes, files) != 0
sys.exit(failed)
"""


def test_a_public_name_is_the_same_whatever_was_imported_before():
    table = {}
    for face in FACES:
        files = [name for name, path in modules().items() if not needs_extra(path)
                 and (name.startswith(f"{face}.") if face != "emcore" else name.count(".") == 1)]
        table[face] = public(face), files
    done = subprocess.run([sys.executable, "-c", ORDERS.replace("TABLE", repr(table))], capture_output=True, text=True,
                          cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_file_of_a_package_hides_a_public_name():
    for face in FACES:
        files = {name.rpartition(".")[2] for name in modules() if name.rpartition(".")[0] == face}
        assert {name for name, home in public(face).items() if home != face} & files == set(), face
        assert set(public(face)) == set(importlib.import_module(face).__all__)
    with pytest.raises(AttributeError, match="it offers"):
        _ = importlib.import_module("emcore.segment").watershedd


def test_the_public_api_runs_as_its_types_say(tmp_path):
    text = (ROOT / "tests" / "typed_api.py").read_text()
    unused = [f"{face}.{name}" for face in FACES[:5] for name in public(face)
              if not re.search(rf"\b{face.rpartition('.')[2]}\.{name}\b|\b{name} as\b|^from emcore import .*\b{name}\b",
                               text, re.MULTILINE)]
    assert unused == []
    use_all(tmp_path, sorted((ROOT / "weights").glob("*.pt"))[:1])


@pytest.mark.skipif(importlib.util.find_spec("mypy") is None, reason="mypy is not installed: the extra dev brings it")
def test_the_public_api_passes_a_strict_type_checker():
    done = subprocess.run([sys.executable, "-m", "mypy"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_public_function_takes_more_than_eight_parameters():
    found = set()
    for face in FACES:
        for name, home in public(face).items():
            found |= {name for node in definitions(home) if isinstance(node, ast.FunctionDef) and node.name == name
                      and parameters(node) > 8}
    for home in modules():
        if room(home) == "models":
            found |= {node.name for node in definitions(home) if isinstance(node, ast.FunctionDef)
                      and parameters(node) > 8}
            found |= {node.name for node in definitions(home) if isinstance(node, ast.ClassDef)
                      for inner in node.body if isinstance(inner, ast.FunctionDef) and inner.name == "__init__"
                      and parameters(inner) > 9}  # with self
    assert found == TOO_MANY


def definitions(module: str) -> list[ast.stmt]:
    return ast.parse(modules()[module].read_text()).body


def parameters(node: ast.FunctionDef) -> int:
    given = node.args
    return len(given.posonlyargs + given.args + given.kwonlyargs) + bool(given.vararg) + bool(given.kwarg)


# ---- the build files


def test_pins_cover_what_the_package_needs():
    built = tomllib.loads((ROOT / "pyproject.toml").read_text())
    project, extras = built["project"], built["project"]["optional-dependencies"]
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {line.split("==")[0].strip().lower() for line in lines if line.strip() and not line.startswith("#")}

    def names(needs: list[str]) -> set[str]:
        return {re.split(r"[\[=<>]", need)[0].lower() for need in needs}

    assert names(project["dependencies"]) == {"torch", "numpy", "h5py", "numba"}
    assert names(built["build-system"]["requires"]) == {"setuptools", "cython"}
    assert names(extras["test"]) == {"pytest"}
    assert set(extras) == {"test", "tiff", "mrc", "zarr", "remote", "dask", "tensorboard", "yaml", "all", "peers",
                           "bench", "docs", "notebooks", "dev"}
    for needs in (project["dependencies"], built["build-system"]["requires"], extras["test"], extras["peers"]):
        assert names(needs) <= pinned


def test_no_file_outgrows_the_house():
    for path in [*PACKAGE.rglob("*.py"), *ROOT.glob("*.py")]:
        assert len(path.read_text().splitlines()) <= 400, path
    for path in (ROOT / "kernels").glob("*.pyx"):
        assert len(path.read_text().splitlines()) <= 300, path


def test_no_two_tests_of_one_file_share_a_name():
    for path in (ROOT / "tests").glob("test_*.py"):
        names = [node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)]
        assert len(names) == len(set(names)), path
