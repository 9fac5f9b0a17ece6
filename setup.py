"""Compiles kernels/*.pyx to emcore.kernels.*; everything else stands in pyproject.toml."""

import glob
import os
import shutil
import sys

from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

HERE = os.path.dirname(os.path.abspath(__file__))
SCRIPTS = ("train.py", "infer.py", "evaluate.py")

# No -march=native: a wheel built on the login node must run on every compute node. Sanitizers come in by CXXFLAGS.
# Without them no debugger needs the names, which are six sevenths of the package and a third of the compiler's time.
SPEED = ["-O1"] if "-fsanitize" in os.environ.get("CXXFLAGS", "") else ["-O3", "-g0"]
FLAGS = ["/O2", "/std:c++17"] if sys.platform == "win32" else [*SPEED, "-std=c++17", "-fno-math-errno"]
# What Cython adds to a module for views of memory stands in one module that the others import: in each of them it was
# more than half of the lines that were compiled. Cython writes it by itself, in C; no loop of a kernel is in it.
SHARED = "emcore.kernels.shared"
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None


def kernel(path: str) -> Extension:
    name = "emcore.kernels." + os.path.splitext(os.path.basename(path))[0]
    return Extension(name, [path], language="c++", extra_compile_args=FLAGS)


class BuildExtensions(build_ext):
    """Compiles on every core allotted to this process."""

    def finalize_options(self):
        super().finalize_options()
        self.parallel = self.parallel or CORES


class BuildPackage(build_py):
    """Puts the three scripts inside the package, so that a wheel offers `python -m emcore train`."""

    def run(self):
        super().run()
        if getattr(self, "editable_mode", False):
            return  # a checkout runs the scripts where they are
        target = os.path.join(self.build_lib, "emcore", "scripts")
        os.makedirs(target, exist_ok=True)
        for script in SCRIPTS:
            if os.path.exists(os.path.join(HERE, script)):
                shutil.copyfile(os.path.join(HERE, script), os.path.join(target, script))


directives = {
    "language_level": 3,
    "boundscheck": False,
    "wraparound": False,
    "initializedcheck": False,
    "cdivision": True,
    "embedsignature": True,
    "freethreading_compatible": True,
}
if __name__ == "__main__":  # the processes that translate kernels import this file
    os.chdir(HERE)
    kernels = [kernel(path) for path in sorted(glob.glob("kernels/*.pyx"))]
    kernels.append(Extension(SHARED, ["kernels/shared.c"], extra_compile_args=[] if sys.platform == "win32" else SPEED))
    kernels = cythonize(kernels, nthreads=CORES or 0, compiler_directives=directives, quiet=True,
                        shared_utility_qualified_name=SHARED)
    setup(
        # the longest come first, so that no core is left alone with one at the end
        ext_modules=sorted(kernels, key=lambda made: -os.path.getsize(made.sources[0])),
        cmdclass={"build_ext": BuildExtensions, "build_py": BuildPackage},
    )
