# Two commands for a newcomer: `make demo` and `make test`. Each sets itself up and skips finished steps on a rerun.
#   make demo|test VENV=       use the active Python (with its packages) instead of .venv
#   make demo DEMO="train.steps=100"   settings of configs/demo.toml to override
#   make test TESTS="-m 'not slow'"    arguments for pytest, which runs as two processes that share the files

PYTHON ?= python3
VENV ?= .venv
TESTS ?=
FUZZ ?=
DEMO ?=
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help setup kernels peers demo test test-long fuzz fast sanitize lint types docs notebooks bench wheel clean

ifeq ($(strip $(VENV)),)
python := $(PYTHON)
packages :=
else
python := $(VENV)/bin/python
packages := $(VENV)/.packages
endif

comma := ,

# $(call step,what it does,command): says it, runs it, says how long it took
define step
@echo "== $(1)"; start=$$(date +%s); $(2); echo "== done in $$(( $$(date +%s) - start )) s: $(1)"
endef

# $(call pytest,arguments): two processes, each of which takes the next file of tests that the other has not taken (see
# tests/conftest.py); what the second one says follows at the end. Each of them and of the hundreds of processes that they
# start would translate every file again if Python were told not to keep bytecode
define pytest
rm -rf build/tests; mkdir -p build/tests; status=0; \
export OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} PYTHONDONTWRITEBYTECODE=; \
$(python) -m pytest --share build/tests/taken $(1) > build/tests/second 2>&1 & second=$$!; \
$(python) -m pytest --share build/tests/taken $(1) || status=$$?; \
echo "== the second of the two processes"; wait $$second || status=$$?; cat build/tests/second; test $$status = 0
endef

help:
	@sed -n 's/^# \?//p' Makefile | head -5
	@echo "targets: demo test test-long fuzz peers fast sanitize lint types docs notebooks bench wheel clean"

# the packages of constraints.txt, once; a stamp that changes with the pins
$(VENV)/.packages: constraints.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit(f"emcore needs Python 3.11 or newer; $(PYTHON) is {sys.version.split()[0]}: say make PYTHON=python3.12")'
	@command -v c++ >/dev/null || { echo "no C++ compiler found: install g++ (Debian: apt-get install g++)"; exit 2; }
	$(call step,virtual environment in $(VENV),$(PYTHON) -m venv $(VENV))
	$(call step,packages of constraints.txt (torch is the large one),$(VENV)/bin/python -m pip install --disable-pip-version-check -q -c constraints.txt torch numpy h5py numba cython pytest setuptools wheel tifffile imagecodecs mrcfile zarr dask distributed dask-jobqueue pyyaml ruff mypy)
	@touch $@

# what tests compare with (scipy, waterz and others: the extra peers), as wheels; torch and the rest stay as they are
$(VENV)/.peers: $(packages)
	@$(VENV)/bin/python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["peers"], sep="\n")' > $(VENV)/peers.txt
	$(call step,peers of the tests,$(VENV)/bin/python -m pip install --disable-pip-version-check -q --only-binary :all: -c constraints.txt -r $(VENV)/peers.txt)
	@touch $@

build/.kernels: $(wildcard kernels/*.pyx kernels/*.pxi) setup.py $(packages)
	$(call step,compiling kernels/*.pyx,$(python) setup.py -q build_ext --inplace)
	@mkdir -p build && touch $@

kernels: build/.kernels

setup: kernels
	$(call step,compiling what Numba compiles,$(python) -m emcore warm)

peers: $(if $(packages),$(VENV)/.peers)

# synthetic tissue -> training -> neurons of a volume it has not seen -> scores and one page -> its synapses, by weights
# that come with emcore -> who talks to whom
SYNAPSES := --cfg configs/tissue/synth_synapses.toml name=demo_synapses data.folder=outputs/demo/data \
	'data.test=[{image = "B.h5:raw", label = "B.h5:polarity", name = "B"}]'
NEURONS = $$(ls -td outputs/demo/results_step=* | head -1)/test_im_labels.h5
SIDES := outputs/demo_synapses_weights=synth_synapses
# an older checkout made data without annotations of synapses, which the scores of edges need
DATA_IS_THERE := $(python) -c 'import h5py; h5py.File("outputs/demo/data/B.h5")["annotations/ids"]' 2> /dev/null
demo: kernels
	@mkdir -p outputs/demo
	$(call step,synthetic tissue with ground truth,$(DATA_IS_THERE) || $(python) -m emcore synth --layout plain outputs/demo/data --shape 28$(comma)192$(comma)192 --resolution 30$(comma)8$(comma)8 --samples 2 --synapses 14 --partners 4)
	$(call step,training a small RSUNet,$(python) train.py --cfg configs/demo.toml $(DEMO))
	$(call step,predicting and segmenting the held-out volume,$(python) infer.py --cfg configs/demo.toml $(DEMO))
	$(call step,scores and page,$(python) evaluate.py --cfg configs/demo.toml $(DEMO))
	$(call step,synapses of the held-out volume,$(python) infer.py $(SYNAPSES) --checkpoint weights/synth_synapses.pt)
	$(call step,scores of synapses and of edges,$(python) evaluate.py $(SYNAPSES) --results $(SIDES) evaluate.neurons=$(NEURONS):labels)
	$(call step,who talks to whom,$(python) -m emcore connectome --labels $(NEURONS) --synapses $(SIDES)/B_labels.h5 --image outputs/demo/data/B.h5:raw outputs/demo/wiring)
	$(call step,the neurons in 3-d,$(python) -m emcore view $(NEURONS) --image outputs/demo/data/B.h5:raw --connectome outputs/demo/wiring outputs/demo/view)

test: kernels
	$(call step,the whole test suite,$(call pytest,$(TESTS)))

# fuzz, storms, kills and long comparisons: up to an hour; make test-long TESTS="--long 0.1 --long-seed monday" draws a tenth
test-long: kernels
	$(call step,the long tests,$(call pytest,--long=1 $(TESTS)))

# every reader of foreign files against damaged ones, a line for each: make fuzz FUZZ="--each 1000 --seed 7 hdf5 tiff"
fuzz: kernels
	$(call step,damaged files for every reader,$(python) -m tests.fuzz $(FUZZ))

fast: kernels
	$(call step,the fast tests,$(call pytest,-m "not slow" $(TESTS)))

# the kernels of build/sanitize stop at the first address out of bounds or operation without a meaning: ten minutes to
# build; CALLS=100 makes a shorter storm. Python itself leaks on purpose, so leaks are not looked for
CALLS ?= 2000
SANITIZERS := -fsanitize=address,undefined
sanitize: $(packages)
	$(call step,compiling kernels/*.pyx with sanitizers into build/sanitize,CXXFLAGS="-g1 -fno-wrapv -fno-omit-frame-pointer $(SANITIZERS) -fno-sanitize-recover=undefined" LDFLAGS="$(SANITIZERS)" $(python) setup.py -q build_ext --build-lib build/sanitize --build-temp build/sanitize/objects)
	$(call step,random calls of segment and metrics,LD_PRELOAD="$$(c++ -print-file-name=libasan.so) $$(c++ -print-file-name=libstdc++.so.6)" ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 UBSAN_OPTIONS=print_stacktrace=1 $(python) -m tests.storm --calls $(CALLS) --kernels build/sanitize/emcore/kernels)

# every benchmark whose peers are installed (make peers; loaders also with monai: the extra bench)
bench: kernels
	$(call step,kernels against their peers,$(python) -m bench.kernels --size 256)
	$(call step,metrics against their peers,$(python) -m bench.metrics --size 256)
	$(call step,augmentations targets and loader,$(python) -m bench.data --gigavoxels 0.2)
	$(call step,the net in every mode,$(python) -m bench.training --net rsunet)
	$(call step,prediction,$(python) -m bench.predict --stream-shape 128 1536 1536)
	$(call step,tuning,$(python) -m bench.tune)

lint: $(packages)
	$(call step,ruff check,$(python) -m ruff check .)

# the public API as a strict type checker sees it
types: $(packages)
	$(call step,mypy --strict tests/typed_api.py,$(python) -m mypy)

# the site of docs/ and of the docstrings (the extra docs), and the pages that are made of the code
$(VENV)/.docs: $(packages) constraints.txt
	@$(VENV)/bin/python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["docs"], sep="\n")' > $(VENV)/docs.txt
	$(call step,packages of the site,$(VENV)/bin/python -m pip install --disable-pip-version-check -q -c constraints.txt -r $(VENV)/docs.txt)
	@touch $@

# what examples/*.ipynb need (the extra notebooks); make test-long runs them where it is there
$(VENV)/.notebooks: $(packages) constraints.txt
	@$(VENV)/bin/python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["notebooks"], sep="\n")' > $(VENV)/notebooks.txt
	$(call step,packages of the notebooks,$(VENV)/bin/python -m pip install --disable-pip-version-check -q -c constraints.txt -r $(VENV)/notebooks.txt)
	@touch $@

notebooks: $(if $(packages),$(VENV)/.notebooks)

docs: kernels $(if $(packages),$(VENV)/.docs)
	$(call step,pages that are made of the code,$(python) -m bench.reference)
	$(call step,site in build/site/index.html,NO_MKDOCS_2_WARNING=1 $(python) -m mkdocs build --strict)

wheel: $(packages)
	$(call step,wheel in dist/,$(python) -m pip wheel --disable-pip-version-check -q --no-deps --no-build-isolation -w dist .)

clean:
	rm -rf build dist *.egg-info emcore/kernels/*.so kernels/*.cpp kernels/*.c outputs/demo
