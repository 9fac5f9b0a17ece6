"""How large the house is: lines of each room, and the largest functions.

    python -m bench.rooms
"""

import ast
from collections import Counter
from pathlib import Path

from tests.test_house import ROOT, modules, room

LARGEST = 10


def lines(path: Path) -> int:
    return len(path.read_text().splitlines())


def main() -> None:
    rooms: Counter[str] = Counter()
    functions = []
    for name, path in modules().items():
        rooms[room(name)] += lines(path) + (lines(path.with_suffix(".pyi")) if path.with_suffix(".pyi").exists() else 0)
        functions += [(node.end_lineno - node.lineno + 1, f"{path.relative_to(ROOT)}: {node.name}")
                      for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)]
    rooms["scripts"] = sum(map(lines, ROOT.glob("*.py")))
    kernels = sum(map(lines, [*ROOT.glob("kernels/*.pyx"), *ROOT.glob("kernels/*.pxi")]))
    for name, count in [*rooms.most_common(), ("all Python", rooms.total()), ("Cython", kernels)]:
        print(f"{count:6}  {name}")
    print()
    for count, name in sorted(functions, reverse=True)[:LARGEST]:
        print(f"{count:6}  {name}")


if __name__ == "__main__":
    main()
