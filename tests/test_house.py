"""The house itself: floors, public names, import time, the build files."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "emcore"

# part of emcore -> the parts it may import; imports only go down (docs/architecture.md)
GROUND = {"errors", "files", "locks", "reading", "threads", "progress", "png", "cache"}
FLOOR = {
    "kernels": set(),
    "config": GROUND,
    "settings": GROUND | {"config"},
    "volumes": GROUND | {"config"},
    "synth": GROUND | {"config", "volumes", "segment"},
    "segment": GROUND | {"kernels", "config", "volumes"},
    "metrics": GROUND | {"kernels", "config", "volumes", "segment"},
}
FLOOR["record"] = GROUND | {"config", "settings", "volumes"}
FLOOR["results"] = FLOOR["record"] | {"record"}
FLOOR["models"] = GROUND | {"config", "settings", "kernels", "volumes", "segment", "metrics"}
FLOOR["losses"] = FLOOR["models"] | {"models"}  # the edge map of masked pretraining also weighs losses
FLOOR["data"] = FLOOR["models"] | {"synth"}
FLOOR["decode"] = FLOOR["results"] | {"results", "segment", "metrics"}
UPPER = FLOOR["data"] | {"data", "models", "losses", "record", "results", "decode"}
FLOOR["engine"] = FLOOR["report"] = UPPER | {"engine"}
FLOOR["smoke"] = UPPER | {"__main__"}  # runs the scripts as a user does, and imports none of them
FLOOR["prediction"] = UPPER | {"engine"}
FLOOR["systems"] = UPPER | {"engine", "prediction"}
FLOOR["legacy_v1"] = GROUND | {"systems"}  # the old name of a command
NO_TORCH = (*sorted(GROUND), "kernels", "config", "settings", "volumes", "synth", "segment", "metrics",
            "record", "results", "decode")


def part(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> set[str]:
    """Every module that a file imports anywhere, also inside functions; `if TYPE_CHECKING` blocks count too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
        elif isinstance(node, ast.ImportFrom):
            raise AssertionError(f"{path} uses a relative import")
    return found


def sources() -> list[Path]:
    return [path for path in sorted(PACKAGE.rglob("*.py")) if part(path) not in ("__init__", "__main__", "scripts")]


def test_imports_only_go_down():
    for path in sources():
        own = part(path)
        if own in GROUND:
            allowed = GROUND
        else:
            assert own in FLOOR, f"{path} stands on no floor: name it in tests/test_house.py and docs/architecture.md"
            allowed = FLOOR[own] | {own}
        for name in imports(path):
            if name == "emcore.config.READS" or not name.startswith("emcore."):
                continue
            target = name.split(".")[1]
            if own == "config" and target == "settings":
                continue  # only `python -m emcore config` prints them
            known = (PACKAGE / target).exists() or (PACKAGE / f"{target}.py").exists() or target == "kernels"
            assert not known or target in allowed, f"{path} imports {name}, which is not below {own}"


@pytest.mark.parametrize("floor", NO_TORCH)
def test_decoding_scoring_and_volumes_never_name_torch(floor):
    for path in sources():
        if part(path) == floor:
            assert not {name for name in imports(path) if name.split(".")[0] == "torch"}, path


def test_nothing_imports_the_scripts():
    for path in [*sources(), *(ROOT / "tests").glob("*.py"), *(ROOT / "bench").glob("*.py")]:
        assert not imports(path) & {"train", "infer", "evaluate"}, path


def test_importing_emcore_is_quick_and_brings_no_torch():
    code = ("import time, sys; start = time.perf_counter(); import emcore; seconds = time.perf_counter() - start\n"
            "heavy = [name for name in ('torch', 'numba', 'h5py', 'numpy') if name in sys.modules]\n"
            "print(seconds, heavy); sys.exit(bool(heavy) or seconds > 0.3)")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("module", ["volumes", "config", "segment", "metrics", "synth", "decode",
                                    "decode.labels", "decode.tune"])
def test_the_lower_floors_work_where_torch_is_absent(module):
    code = (f"import sys; sys.modules['torch'] = None; import emcore.{module} as module\n"
            "[getattr(module, name) for name in getattr(module, '__all__', [])]")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_every_public_name_exists():
    import emcore
    import emcore.metrics
    import emcore.segment
    for module in (emcore, emcore.segment, emcore.metrics):
        for name in module.__all__:
            assert getattr(module, name) is not None
    with pytest.raises(AttributeError, match="it offers"):
        _ = emcore.segment.watershedd


def test_pins_cover_what_the_package_needs():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {line.split("==")[0].strip().lower() for line in lines if line.strip() and not line.startswith("#")}
    names = {re.split(r"[\[=<>]", need)[0].lower() for need in project["dependencies"]}
    assert names <= pinned
    assert names == {"torch", "numpy", "h5py", "numba", "cython", "pytest"}
    extras = project["optional-dependencies"]
    assert set(extras) == {"tiff", "zarr", "tensorboard", "dask", "yaml", "all", "peers", "bench", "dev"}
    assert {re.split(r"[\[=<>]", need)[0].lower() for need in extras["peers"]} <= pinned


def test_no_file_outgrows_the_house():
    for path in [*PACKAGE.rglob("*.py"), *ROOT.glob("*.py")]:
        assert len(path.read_text().splitlines()) <= 400, path
    for path in (ROOT / "kernels").glob("*.pyx"):
        assert len(path.read_text().splitlines()) <= 300, path


def test_no_two_tests_of_one_file_share_a_name():
    for path in (ROOT / "tests").glob("test_*.py"):
        names = [node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)]
        assert len(names) == len(set(names)), path
