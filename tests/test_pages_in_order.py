"""Every command of README, docs and tutorials, run in the order of its page in one folder: it makes what the page says.

The recipes are those of configs/ at the size of a smoke test, under the same names, with synthetic files where the
recipes expect theirs. A table says of each command what must be new or changed afterwards, or printed. A command
without a row, a row without a command, and a command that does nothing fail.
"""

import contextlib
import fnmatch
import hashlib
import io
import re
import runpy
import shlex
import shutil
import textwrap
import zipfile
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import h5py
import numpy as np
import pytest

import tests.test_import_checkpoint as lightning_files
import tests.test_learned as learned
from emcore import config
from emcore.__main__ import SCRIPTS, TOOLS
from emcore.engine import checkpoint
from emcore.errors import run_command
from emcore.files import remove
from emcore.models.build import build_model
from emcore.segment import Edit, write_edits
from emcore.settings import Settings
from emcore.smoke import PLACES, STEPS, narrow, reduced, short, write_files
from emcore.synth import synthesize
from emcore.volumes import create_volume, list_datasets, open_volume, split_reference

ROOT = Path(__file__).resolve().parent.parent
PROGRAMS = ("python", "torchrun", "sbatch", "tensorboard", "make")
# what is not run here, and why
NOT_RUN = {
    r".*gs://": "needs the network; test_published.py runs it against a server of this machine",
    r"python -m emcore download ": "fetches gigabytes; test_download.py runs it against a server of its own",
    r"tensorboard ": "another program, which runs until it is stopped",
    r"python -m emcore serve ": "runs until it is stopped; test_serve.py asks it for files",
    r"sbatch ": "needs a cluster; test_slurm.py submits to one of a single node",
    r"make ": "the suites and the demo; CI runs them",
    r"python infer\.py --cfg X$": "X is a config of the reader's; test_slurm_blocks.py hands in jobs this way",
    r".* --smoke$": "test_recipes.py runs the smoke test of every recipe",
}
# large numbers of the pages -> those of the small recipes; what the small recipes cannot say is shortened
SMALLER = {
    r"\bstep_\d{9}\b": f"step_{STEPS:09d}", r"\bresults_step=\d+": f"results_step={STEPS}", r"/your/data": "your/data",
    r"--shape \S+": "--shape 16,64,64", r"--at=\S+": "--at=-1,-2,-2",
    r"(submit cremi [^=]*)$": r"\1 --at 0,0,0", r"(submit cremi .*)": r"\1 --shape 20,60,60",
    r"--iteration-total \d+": "--iteration-total 2",
    r"--iteration-save \d+": "--iteration-save 1", r"-mi \S+": "-mi 2,32,32", r"-g 4 -c 4 -b \d+": "-g 1 -c 0 -b 2",
    r"volume_50000\.pth": "volume_1.pth", r"PREDICTION\.h5": f"outputs/demo/results_step={STEPS}/test_im_prediction.h5",
}


# ---- what a command must have done


def makes(*patterns):
    return "makes", patterns


def changes(*patterns):
    return "changes", patterns


def prints(*patterns):
    return "prints", patterns


def trained(name):
    return makes(f"outputs/{name}/checkpoints/step_{STEPS:09d}.pt", f"outputs/{name}/log.csv")


def predicted(name, volume="test_im", labels=True, where=f"results_step={STEPS}"):
    kinds = ("prediction", "labels") if labels else ("prediction",)
    return makes(*(f"outputs/{name}/{where}/{volume}_{kind}.h5" for kind in kinds))


def scored(name, where=f"results_step={STEPS}", page="report.html"):
    return makes(f"outputs/{name}/{where}/scores.json", f"outputs/{name}/{page}")


def rescored(name, *more):
    return changes(f"outputs/{name}/results_step={STEPS}/scores.json", *more)


R = f"results_step={STEPS}"
CLEFTS, NEURONS = "configs/cremi/cremi_clefts.toml", "configs/snemi/snemi_neurons.toml"
V1 = "configs/legacy_v1/cremi_clefts_v1.toml"
FIB25, MEMBRANES = "configs/tissue/fib25_neurons.toml", "configs/tissue/isbi2012_membranes.toml"
GIVEN, GIVEN_RESULTS = "--checkpoint weights/fib25_neurons.pt", "fib25_neurons_weights=fib25_neurons"
R33, EMR50, SMALL = ("configs/dbmim/dbmim_finetune_r33.toml", "configs/emr50/emr50_polarity.toml",
                     "configs/emr50/emr50_polarity_small.toml")
HF = "outputs/hf_weights/weights/fullem_mixedmask_dbmim_r33"
V1_DATA = ("-t datasets/cremi_v1/ -dn images/im_A_v2_200.h5@images/im_B_v2_200.h5@images/im_C_v2_200.h5",
           "-ln gt-syn/syn_A_v2_200.h5@gt-syn/syn_B_v2_200.h5@gt-syn/syn_C_v2_200.h5")
WIRING, FOUND = "datasets/synthetic/wiring", "outputs/synth_neurons/results_step=500/test_labels.h5"
OURS = "name=mine data.folder=/your/data"

# page -> (command as the page has it, without its comment; what it does)
TABLE = {
    "README.md": [
        ("python -m emcore inspect your.h5", prints(r"labels")),
        ("python -m emcore convert your.tif your.h5:raw", changes("your.h5")),
        (f"python train.py --cfg configs/demo.toml {OURS} train.optimizer.lr=1e-3", trained("mine")),
        (f"python infer.py --cfg configs/demo.toml {OURS}", predicted("mine")),
        (f"python evaluate.py --cfg configs/demo.toml {OURS}", scored("mine")),
        ("torchrun --nproc-per-node=4 train.py --cfg configs/demo.toml train.batch=8", "instead"),
        ("sbatch slurm/train.sbatch configs/cremi/cremi_clefts.toml", None),
        (f"python train.py --cfg {CLEFTS} --smoke", None),
        ("python -m emcore config train", prints(r"\[train\]", r"steps = ")),
        ("python -m emcore models", prints(r"fib25_neurons", r"licence")),
    ],
    "docs/benchmarks.md": [
        *[(f"python {script}.py --cfg {FIB25} data.folder=data", done) for script, done in (
            ("train", trained("fib25_neurons")), ("infer", predicted("fib25_neurons", "fib25_val")),
            ("evaluate", scored("fib25_neurons")))],
        *[(f"python train.py --cfg configs/tissue/{name}.toml data.folder=data", trained(name))
          for name in ("fib25_unetr", "fib25_pretrain", "fib25_unetr_pretrained")],
        *[(f"python {script}.py --cfg {MEMBRANES} data.folder=data", done) for script, done in (
            ("train", trained("isbi2012_membranes")), ("infer", predicted("isbi2012_membranes", "isbi2012_val")),
            ("evaluate", scored("isbi2012_membranes")))],
        (f'python train.py --cfg {MEMBRANES} data.folder=data "data.train_part=[0.0,1.0]" '
         "name=isbi2012_membranes_all", trained("isbi2012_membranes_all")),
        *[(f"python {script}.py --cfg configs/tissue/vnc_{kind}.toml data.folder=data", done)
          for kind in ("clefts", "mitochondria") for script, done in (
              ("train", trained(f"vnc_{kind}")), ("infer", predicted(f"vnc_{kind}", "vnc_val")),
              ("evaluate", scored(f"vnc_{kind}")))],
        (f"python infer.py --cfg {FIB25} --checkpoint weights/fib25_neurons.pt --params new.toml",
         makes("outputs/fib25_neurons_weights=fib25_neurons/new_prediction.h5",
               "outputs/fib25_neurons_weights=fib25_neurons/new_labels.h5")),
        (f"python evaluate.py --cfg {FIB25} --params new.toml "
         "--results outputs/fib25_neurons_weights=fib25_neurons",
         makes("outputs/fib25_neurons_weights=fib25_neurons/scores.json",
               "outputs/fib25_neurons_weights=fib25_neurons/report.html")),
    ],
    "docs/blocks.md": [
        ("sbatch --array=0-15 slurm/infer.sbatch X decode.kind=none", None),
        ("sbatch --array=0-199 --gpus=0 --cpus-per-task=2 --mem=16G slurm/infer.sbatch X", None),
        ("python infer.py --cfg X", None)],
    "docs/connectome.md": [
        ("python -m emcore synth --shape 48,256,256 tissue", makes("tissue/A.h5")),
        ("python -m emcore connectome --labels tissue/A.h5:labels --synapses tissue/A.h5:polarity "
         "--image tissue/A.h5:raw wiring", makes("wiring/connectome.html", "wiring/edges.csv", "wiring/graph.npz")),
        ("python -m emcore skeletonize tissue/A.h5:labels skeletons", makes("skeletons/*.swc")),
        ("python -m emcore skeletonize tissue/A.h5:labels for_viewer --format precomputed", makes("for_viewer/info")),
        ("python -m emcore score tissue/A.h5:labels skeletons --skeletons", prints(r"nerl +1\.000000")),
        ("python -m emcore mesh A_labels.h5 A_meshes", makes("A_meshes/info", "A_meshes/1:0", "A_meshes/2:0:mesh")),
        ("python -m emcore mesh A_labels.h5 A_ply --format ply --ids 1,2 --error 20",
         makes("A_ply/1.ply", "A_ply/2.ply")),
        ("python -m emcore convert A_labels.h5:labels A.precomputed", makes("A.precomputed/info")),
        ("python -m emcore mesh A.precomputed A.precomputed", makes("A.precomputed/mesh/info")),
        ("python -m emcore view tissue/A.h5:labels --image tissue/A.h5:raw --connectome wiring seen",
         makes("seen/view.html", "seen/view.json", "seen/labels.precomputed/mesh/info", "seen/synapses/by_id/0.shard")),
        ("python -m emcore serve seen", None),
        ("python -m emcore statistics A_labels.h5 A_labels.csv", makes("A_labels.csv", "A_labels_contacts.csv"))],
    "docs/proofreading.md": [
        ("python train.py --cfg configs/demo.toml", trained("demo")),
        ("python infer.py --cfg configs/demo.toml", predicted("demo")),
        ("python -m emcore doubts outputs/demo/results_step=600/test_im_labels.h5 doubts",
         makes("doubts/doubts.csv", "doubts/doubts.html", "doubts/doubts.json")),
        ("python infer.py --cfg configs/demo.toml --edits edits.csv",
         makes(f"outputs/demo/{R}/test_im_labels_edits=edits.h5")),
        ("python infer.py --cfg configs/demo.toml --cut 0.6 --edits edits.csv",
         makes(f"outputs/demo/{R}/test_im_labels_0.6_edits=edits.h5")),
        (f"python -m emcore handover outputs/demo/{R}/test_im_labels.h5 for_webknossos --edits edits.csv",
         makes(*(f"for_webknossos/{name}" for name in (
             "agglomerates.hdf5", "supervoxels.precomputed/info", "supervoxels.csv", "edges.csv", "merges/info")))),
        (f"python -m emcore handover outputs/demo/{R}/test_im_labels.h5 back.csv --back changed.hdf5",
         makes("back.csv")),
        ("python -m emcore learn-contacts --cfg mine.toml --edits mine_prediction.h5 mine_edits.csv",
         makes("mine_contacts.json"))],
    "docs/embedding.md": [("python infer.py --cfg configs/demo.toml --export net.pt2", makes("net.pt2"))],
    "docs/tuning.md": [
        ("python evaluate.py --cfg configs/demo.toml --tune",
         makes(*(f"outputs/demo/{R}/{name}" for name in ("best_params.toml", "tune.csv", "tune.svg", "tune.jsonl")))),
        (f"python infer.py --cfg configs/demo.toml --from PREDICTION.h5 --params outputs/demo/{R}/best_params.toml",
         changes(f"outputs/demo/{R}/test_im_labels.h5")),
    ],
    "docs/migration.md": [
        ("python -m emcore import-config tutorials/syn_cremi.yaml -o cremi.toml", makes("cremi.toml")),
        ("python train.py --cfg cremi.toml", makes("outputs/*/checkpoints/step_000000004.pt")),
        ("python -m emcore import-checkpoint last.ckpt -o ours.pt --cfg cremi.toml", makes("ours.pt")),
        ("python infer.py --cfg cremi.toml --checkpoint ours.pt", makes("outputs/*_weights=ours/*_prediction.h5")),
        ("python -m emcore legacy_v1 train -t cremi/ -dn im_A.h5@im_B.h5 -ln syn_A.h5@syn_B.h5 -o outputs/unetv0 "
         "-lr 1e-03 --iteration-total 100000 --iteration-save 10000 -mi 8,256,256 -g 4 -c 4 -b 8 -ac unetv0 --task 2",
         makes("outputs/unetv0/volume_0.pth", "outputs/unetv0/volume_2.pth")),
        ("python -m emcore legacy_v1 test -t cremi/ -dn im_A.h5@im_B.h5 -mi 8,256,256 -g 4 -c 4 -b 16 -ac unetv0 "
         "--task 2 -lm True -pm outputs/unetv0/volume_50000.pth",
         makes("result/train/volume_0.h5", "result/train/volume_1.h5")),
        ("python -m emcore score result/train/volume_0.h5 cremi/syn_A.h5 --clefts --resolution 40 4 4",
         prints(r"adgt|F1|f1")),
    ],
    "docs/trust.md": [("make test", None), ("make test-long", None),
                      ('make test-long TESTS="--long 0.1 --long-seed monday"', None),
                      ('make test TESTS="tests/test_results.py"', None)],
    "docs/tutorials/README.md": [(f"python train.py --cfg {CLEFTS} --smoke", None)],
    "docs/tutorials/cremi_clefts.md": [
        ("python -m emcore download cremi", None),
        ("python -m emcore inspect datasets/corrected/syn_A.h5", prints(r"main")),
        ("python -m emcore synth --layout cremi-clefts datasets/synthetic/cremi --shape 125,512,512 --samples 3",
         makes("datasets/synthetic/cremi/im_A.h5", "datasets/synthetic/cremi/syn_C.h5")),
        (f"python train.py --cfg {CLEFTS}", trained("cremi_clefts")),
        (f"torchrun --nproc-per-node=4 train.py --cfg {CLEFTS} train.batch=16", "instead"),
        ("tensorboard --logdir outputs/cremi_clefts/tensorboard", None),
        ("python -m emcore report outputs/cremi_clefts", makes("outputs/cremi_clefts/report.html")),
        (f"python -m emcore augment --cfg {CLEFTS} --out augmentations.html", makes("augmentations.html")),
        ("python -m emcore import-config tutorials/syn_cremi.yaml -o syn_cremi.toml", makes("syn_cremi.toml")),
        (f"python -m emcore import-checkpoint last.ckpt -o cremi_clefts.pt --cfg {CLEFTS}", makes("cremi_clefts.pt")),
        (f"python infer.py --cfg {CLEFTS}", predicted("cremi_clefts", "*", labels=False)),
        (f"python infer.py --cfg {CLEFTS} --checkpoint cremi_clefts.pt",
         predicted("cremi_clefts_weights=cremi_clefts", "*", labels=False, where=".")),
        (f"python evaluate.py --cfg {CLEFTS}", scored("cremi_clefts", page=f"{R}/scores.csv")),
        ("python infer.py --cfg challenge.toml --checkpoint outputs/cremi_clefts/checkpoints/step_000150000.pt "
         "--results outputs/challenge", makes(*(f"outputs/challenge/im_{letter}+_labels.h5" for letter in "ABC"))),
        ("python -m emcore submit cremi sample_A+.hdf --clefts outputs/challenge/im_A+_labels.h5",
         makes("sample_A+.hdf")),
        ("python -m emcore submit cremi sample_A+.hdf --clefts clefts_A+.h5 --neuron-ids neurons_A+.h5 "
         "--at=-37,-911,-911", changes("sample_A+.hdf")),
        (f"python infer.py --cfg {CLEFTS} infer.views.flips=[] --results outputs/cremi_clefts/without_views",
         predicted("cremi_clefts", "*", labels=False, where="without_views")),
        (f"python evaluate.py --cfg {CLEFTS} evaluate.threshold=0.4", rescored("cremi_clefts")),
    ],
    "docs/tutorials/cremi_clefts_v1.md": [
        ("python -m emcore convert sample_A_20160501.hdf:volumes/raw datasets/cremi_v1/images/im_A_v2_200.h5:main",
         makes("datasets/cremi_v1/images/im_A_v2_200.h5")),
        ("python -m emcore convert sample_A_20160501.hdf:volumes/labels/clefts "
         "datasets/cremi_v1/gt-syn/syn_A_v2_200.h5:main", makes("datasets/cremi_v1/gt-syn/syn_A_v2_200.h5")),
        ("python -m emcore synth --layout cremi-clefts datasets/synthetic/cremi --shape 64,512,512 --samples 3",
         makes("datasets/synthetic/cremi/im_C.h5")),
        (f"python -m emcore legacy_v1 train --task 2 {' '.join(V1_DATA)} -o outputs/unetv0 -lr 1e-03 "
         "--iteration-total 100000 --iteration-save 10000 -mi 8,256,256 -g 4 -c 4 -b 8 -ac unetv0",
         makes("outputs/unetv0/volume_0.pth", "outputs/unetv0/volume_2.pth")),
        ("tensorboard --logdir runs", None),
        (f"python train.py --cfg {V1}", trained("cremi_clefts_v1")),
        (f"python -m emcore legacy_v1 test --task 2 {V1_DATA[0]} -mi 8,256,256 -g 4 -c 4 -b 16 -ac unetv0 -lm True "
         "-pm outputs/unetv0/volume_50000.pth", makes(*(f"result/train/volume_{n}.h5" for n in range(3)))),
        ("python -m emcore score result/train/volume_0.h5 datasets/cremi_v1/gt-syn/syn_A_v2_200.h5 --clefts "
         "--resolution 40 4 4", prints(r"adgt|F1|f1")),
        (f"python infer.py --cfg {V1}", predicted("cremi_clefts_v1", "*", labels=False)),
        (f"python evaluate.py --cfg {V1}", scored("cremi_clefts_v1")),
        (f"python train.py --cfg {V1} name=cremi_clefts_v1_raw_labels labels.smooth=false",
         trained("cremi_clefts_v1_raw_labels")),
    ],
    "docs/tutorials/contacts.md": [
        (f"python infer.py --cfg {FIB25} {GIVEN} --params mine.toml decode.kind=none",
         predicted(GIVEN_RESULTS, "mine", labels=False, where=".")),
        (f"python -m emcore learn-contacts --cfg {FIB25} --params mine.toml --results outputs/{GIVEN_RESULTS}",
         makes("mine_contacts.json")),
        (f"python infer.py --cfg {FIB25} {GIVEN} --params other.toml", predicted(GIVEN_RESULTS, "other", where=".")),
        (f"python evaluate.py --cfg {FIB25} --params other.toml --results outputs/{GIVEN_RESULTS}",
         scored(GIVEN_RESULTS, where=".", page="report.html")),
    ],
    "docs/tutorials/dbmim.md": [
        ("python -m emcore download cremi-original", None),
        ("python -m emcore download dbmim-r33", None),
        ("python -m emcore download snemi-zenodo --folder downloads", None),
        ("python -m emcore download isbi2012", None),
        ("python -m emcore prepare isbi2012 downloads/isbi2012 --target data/public_em",
         makes("data/public_em/isbi2012_train_raw.h5", "data/public_em/public_em_manifest.json")),
        ("python -m emcore prepare snemi downloads/datasets/SNEMI --target data/public_em",
         makes("data/public_em/snemi3d_train_raw.h5")),
        ("python -m emcore prepare fullem downloads/EM_pretrain_data",
         makes("data/EM_pretrain_data/all/*.h5", "*/all_manifest.json")),
        ("python -m emcore inspect data/CREMI/sample_A_20160501.hdf", prints("volumes/raw")),
        ("python -m emcore synth --layout cremi data/synthetic --shape 64,320,320 --samples 3",
         makes("data/synthetic/sample_C_20160501.hdf")),
        (f"python train.py --cfg {R33} --smoke", None),
        ("python train.py --cfg configs/dbmim/dbmim_pretrain_r33.toml", trained("dbmim_pretrain_r33")),
        (f"python train.py --cfg {R33}", trained("dbmim_finetune_r33")),
        ("torchrun --nproc-per-node=4 train.py --cfg configs/dbmim/dbmim_pretrain_r33.toml", "instead"),
        ("tensorboard --logdir outputs", None),
        ("python -m emcore report outputs/dbmim_finetune_r33", makes("outputs/dbmim_finetune_r33/report.html")),
        (f"python train.py --cfg {R33} name=dbmim_finetune_published train.start_from={HF}/pretrained_latest.pt",
         trained("dbmim_finetune_published")),
        (f"python infer.py --cfg {R33}", predicted("dbmim_finetune_r33", "*")),
        (f"python infer.py --cfg {R33} --checkpoint {HF}/finetuned_latest.pt",
         predicted("dbmim_finetune_r33_weights=finetuned_latest", "*", where=".")),
        (f"python evaluate.py --cfg {R33}",
         makes(*(f"outputs/dbmim_finetune_r33/{R}/{name}" for name in (
             "scores.json", "cremi_segmentation_records.json", "cremi_segmentation_metrics.csv",
             "cremi_segmentation_summary.json")))),
        (f"python evaluate.py --cfg {R33} --results outputs/dbmim_finetune_r33_weights=finetuned_latest",
         scored("dbmim_finetune_r33_weights=finetuned_latest", where=".")),
        (f"python -m emcore blockwise --cfg {R33} evaluate.blockwise.without_halo=true",
         makes("outputs/dbmim_finetune_r33/*/blockwise_scale_records.csv")),
        (f"python evaluate.py --cfg {R33} evaluate.sweep.thresholds=[0.05,0.1,0.2,0.3,0.35,0.4,0.45,0.5,0.55]",
         changes(f"outputs/dbmim_finetune_r33/{R}/cremi_segmentation_records.json")),
    ],
    "docs/tutorials/emr50_polarity.md": [
        ("python -m emcore download emr50", None),
        ("python -m emcore synth --layout polarity datasets/synthetic/emr50 --shape 48,256,256 --resolution 30,8,8 "
         "--samples 2", makes("datasets/synthetic/emr50/*")),
        ("python -m emcore synth --layout polarity datasets/synthetic/emr50_small --shape 96,768,768 "
         "--resolution 30,8,8 --samples 2", makes("datasets/synthetic/emr50_small/*")),
        (f"python train.py --cfg {EMR50}", trained("emr50_polarity")),
        ("python train.py --cfg configs/emr50/emr50_polarity_exclusive.toml", trained("emr50_polarity_exclusive")),
        ("tensorboard --logdir outputs/emr50_polarity/tensorboard", None),
        ("python -m emcore report outputs/emr50_polarity", makes("outputs/emr50_polarity/report.html")),
        (f"python infer.py --cfg {EMR50}", predicted("emr50_polarity", "vol4")),
        (f"python evaluate.py --cfg {EMR50}", scored("emr50_polarity", page=f"{R}/scores.csv")),
        (f"python infer.py --cfg {EMR50} --from outputs/emr50_polarity/results_step=150000/vol4_prediction.h5 "
         "decode.threshold=0.4 decode.small=64", changes(f"outputs/emr50_polarity/{R}/vol4_labels.h5")),
        (f"python evaluate.py --cfg {EMR50} decode.threshold=0.4 decode.small=64", rescored("emr50_polarity")),
        (f"python train.py --cfg {SMALL}", trained("emr50_polarity_small")),
        (f"python infer.py --cfg {SMALL}", predicted("emr50_polarity_small", "*")),
        (f"python evaluate.py --cfg {SMALL}", scored("emr50_polarity_small")),
    ],
    "docs/tutorials/wiring_diagram.md": [
        ("python -m emcore synth datasets/synthetic/wiring/train --shape 48,320,320 --resolution 30,8,8 --seed 1 "
         "--samples 3 --synapses 45 --partners 4", changes(f"{WIRING}/train/A.h5", f"{WIRING}/train/C.h5")),
        ("python -m emcore synth datasets/synthetic/wiring/test --shape 64,320,320 --resolution 30,8,8 --seed 100 "
         "--synapses 60 --partners 4", changes(f"{WIRING}/test/A.h5")),
        *[(f"python {script}.py --cfg configs/tissue/synth_neurons.toml", done) for script, done in (
            ("train", trained("synth_neurons")), ("infer", predicted("synth_neurons", "test")),
            ("evaluate", scored("synth_neurons")))],
        *[(f"python {script}.py --cfg configs/tissue/synth_synapses.toml", done) for script, done in (
            ("train", trained("synth_synapses")), ("infer", predicted("synth_synapses", "test")))],
        (f"python evaluate.py --cfg configs/tissue/synth_synapses.toml evaluate.neurons={FOUND}:labels",
         scored("synth_synapses")),
        (f"python -m emcore connectome --labels {FOUND} --synapses "
         f"outputs/synth_synapses/results_step=900/test_labels.h5 --image {WIRING}/test/A.h5:raw wiring",
         makes("wiring/connectome.html", "wiring/edges.csv")),
        (f"python -m emcore skeletonize {FOUND}:labels skeletons", makes("skeletons/*.swc")),
        (f"python -m emcore mesh {FOUND}:labels meshes --error 20", makes("meshes/info")),
        (f"python -m emcore statistics {FOUND}:labels neurons.csv", makes("neurons.csv", "neurons_contacts.csv")),
        (f"python -m emcore score {FOUND}:labels skeletons --skeletons", prints(r"nerl +1\.000000")),
    ],
    "docs/volumes.md": [
        ("python -m emcore convert raw.h5:raw raw.ome.zarr --workers 4", makes("raw.ome.zarr/zarr.json")),
        ("python -m emcore convert A_labels.h5:labels raw.ome.zarr:labels/cells --workers 4",
         makes("raw.ome.zarr/labels/cells/zarr.json")),
        ("python -m emcore convert A_labels.h5:labels cells.precomputed --format precomputed --workers 4",
         makes("cells.precomputed/info")),
        ("python -m emcore serve .", None)],
    "docs/tutorials/own_data.md": [
        ("python -m emcore inspect mine.h5", prints(r"labels")),
        ("python -m emcore new mine.toml --image mine.h5:raw --labels mine.h5:labels --task neurons",
         makes("mine.toml")),
        ("python train.py --cfg mine.toml --smoke", None),
        ("python train.py --cfg mine.toml", trained("mine")),
        ("python infer.py --cfg mine.toml", predicted("mine", "held_out")),
        ("python evaluate.py --cfg mine.toml", scored("mine")),
        ("python evaluate.py --cfg mine.toml --tune", makes(f"outputs/mine/{R}/best_params.toml")),
        *[(f"python {script}.py --cfg mine.toml --params outputs/mine/results_step=700/best_params.toml", done)
          for script, done in (("infer", changes(f"outputs/mine/{R}/held_out_labels.h5")),
                                ("evaluate", rescored("mine")))],
    ],
    "docs/tutorials/published_volume.md": [
        ("python -m emcore inspect gs://neuroglancer-public-data/flyem_fib-25/image", None),
        ("python infer.py --cfg configs/tissue/fib25_neurons.toml --checkpoint weights/fib25_neurons.pt name=published "
         "'data.test=[{image=\"gs://neuroglancer-public-data/flyem_fib-25/image\", name=\"piece\", "
         "box=[4000,4128,3000,3256,3000,3256]}]' data.storage=lazy infer.window=[64,64,64]", None),
        *[(f"python -m emcore convert gs://neuroglancer-public-data/flyem_fib-25/{name} --box "
           "4000:4128,3000:3256,3000:3256", None) for name in ("image piece.h5:raw", "ground_truth piece.h5:labels")]],
    "docs/tutorials/snemi_neurons.md": [
        ("python -m emcore download snemi", None),
        ("python -m emcore inspect datasets/SNEMI/train-labels.tif", prints("train-labels")),
        ("python -m emcore synth --layout snemi datasets/synthetic/snemi --shape 100,512,512",
         makes("datasets/synthetic/snemi/train-input.tif")),
        (f"python train.py --cfg {NEURONS}", trained("snemi_neurons")),
        (f"torchrun --nproc-per-node=4 train.py --cfg {NEURONS} train.batch=8", "instead"),
        ("tensorboard --logdir outputs/snemi_neurons/tensorboard", None),
        ("python -m emcore report outputs/snemi_neurons", makes("outputs/snemi_neurons/report.html")),
        (f"python infer.py --cfg {NEURONS}", predicted("snemi_neurons")),
        (f"python evaluate.py --cfg {NEURONS}", scored("snemi_neurons", page=f"{R}/scores.csv")),
        (f"python infer.py --cfg {NEURONS} decode.channels=[4,9,6]",
         changes(f"outputs/snemi_neurons/{R}/test_im_labels.h5")),
        (f"python evaluate.py --cfg {NEURONS} decode.channels=[4,9,6]", rescored("snemi_neurons")),
        (f"python evaluate.py --cfg {NEURONS} --tune decode.channels=[4,9,6]",
         makes(f"outputs/snemi_neurons/{R}/tune.csv", f"outputs/snemi_neurons/{R}/best_params.toml")),
        (f"python infer.py --cfg {NEURONS} infer.views.flips=[0,1,2] infer.views.turns=true infer.views.combine=min "
         "--results outputs/snemi_neurons/views", predicted("snemi_neurons", where="views")),
        (f"python infer.py --cfg {NEURONS} decode.link=none", changes(f"outputs/snemi_neurons/{R}/test_im_labels.h5")),
        (f"python evaluate.py --cfg {NEURONS} --tune --tune-random 25 --tune-trial-seconds 300",
         changes(f"outputs/snemi_neurons/{R}/tune.csv")),
        (f"python evaluate.py --cfg {NEURONS} --tune", changes(f"outputs/snemi_neurons/{R}/tune.csv")),
        (f"python infer.py --cfg {NEURONS} --cut 0.4", makes(f"outputs/snemi_neurons/{R}/test_im_labels_0.4.h5")),
    ],
}
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
ALWAYS = ("README.md", "docs/tutorials/cremi_clefts.md")  # the others are marked long


# ---- the commands of a page


def commands(text):
    """Lines of bash and plain blocks, and indented ones, that begin with a program; comments are cut off."""
    blocks = re.findall(r"^```(?:bash)?\n(.*?)^```|((?:^    [^\n]*\n)+)", text, re.MULTILINE | re.DOTALL)
    lines = [line for fenced, indented in blocks
             for line in textwrap.dedent(fenced or indented).replace("\\\n", " ").splitlines()]
    found = [re.sub(r"\s+", " ", re.sub(r"\s+#.*", "", line)).strip() for line in lines]
    return [line for line in found if line.partition(" ")[0] in PROGRAMS and " " in line]


def blocks_without_language(text):
    """The plain blocks of a page alone: blocks of text, toml and python end with the same three marks."""
    kept, inside = [], ""
    for line in text.splitlines(keepends=True):
        if line.startswith("```") and not inside:
            inside = line.strip("`\n") or "plain"
            kept.append("```bash\n" if inside in ("bash", "plain") else "")
        elif line.startswith("```"):
            kept.append("```\n" if inside in ("bash", "plain") else "")
            inside = ""
        elif inside in ("", "bash", "plain"):
            kept.append(line)
    return "".join(kept)


def commands_of(page):
    return commands(blocks_without_language(page.read_text()))


def reason_not_to_run(line):
    return next((reason for pattern, reason in NOT_RUN.items() if re.match(pattern, line)), None)


def same_command(line, row):
    return re.sub(r"results_step=\d+", R, line) == re.sub(r"results_step=\d+", R, row)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_of_a_page_has_a_row_that_says_what_it_does(page):
    found, table = commands_of(page), TABLE.get(str(page.relative_to(ROOT)), [])
    for line, (row, _) in zip(found, table):
        assert same_command(line, row)
    assert len(found) == len(table), found[len(table):]
    for row, does in table:
        assert (does is None) is (reason_not_to_run(row) is not None), row


# ---- the folder of a page


def recipes_of(page):
    """The recipes of a page; those with a truth come first, because others may share their files."""
    names = dict.fromkeys(re.findall(r"configs/([\w/-]+)\.toml", "\n".join(row for row, _ in TABLE[page])))
    return sorted(names, key=lambda name: "pretrain" in name)


def prepare(page, folder):
    """The recipes of the page at the size of a smoke test, and every file that they name."""
    for name in recipes_of(page):
        settings = config.load(Settings, ROOT / "configs" / f"{name}.toml")
        small = reduced(settings, Path("outputs"))
        data = replace(small.data, folder="data" if page == "docs/benchmarks.md" else settings.data.folder)
        start = re.sub(r"step_\d{9}", f"step_{STEPS:09d}", settings.train.start_from)
        small = replace(small, data=data, train=replace(small.train, start_from=start))
        recipe = folder / "configs" / f"{name}.toml"
        recipe.parent.mkdir(parents=True, exist_ok=True)
        recipe.write_text(config.to_toml(small))
        write_missing(settings, small)


def write_missing(settings, small):
    """The files of a recipe but for those, and their datasets, that another recipe of the page has written."""
    data = small.data

    def is_there(reference):
        path, dataset = split_reference(str(Path(data.folder, reference)))
        return path.exists() and (dataset is None or dataset in {item.name for item in list_datasets(path)})

    def missing(volumes):
        return tuple(replace(volume, **{place: None for place in PLACES if (reference := getattr(volume, place))
                                        and is_there(reference)}) for volume in volumes)

    write_files(settings, replace(small, data=replace(data, train=missing(data.train), test=missing(data.test),
                                                      validation=missing(data.validation))))


def volume(path, array):
    Path(path.partition(":")[0]).parent.mkdir(parents=True, exist_ok=True)
    with create_volume(path, array.shape, array.dtype) as out:
        out[...] = array


def clefts(seed=0, shape=(6, 110, 104)):
    labels = np.zeros(shape, np.uint64)
    labels[1:5, 30:60, 20:80] = 5
    return (np.random.default_rng(seed).integers(40, 80, shape) + 120 * (labels > 0)).astype(np.uint8), labels


def before_readme(folder):
    tissue = Path("outputs/demo/data")  # make demo leaves it there
    shutil.copytree(tissue, "your/data")
    run("python train.py --cfg configs/demo.toml")
    image, labels = clefts()
    volume("your.tif", image)
    volume("your.h5:labels", labels)


def before_benchmarks(folder):
    shutil.copytree(ROOT / "weights", "weights")
    text = (ROOT / "docs" / "benchmarks.md").read_text()
    toml = re.search(r"```\n(\[\[data\.test\]\].*?)```", text, re.DOTALL)[1]
    settings = config.load(Settings, ROOT / "configs" / "tissue" / "fib25_neurons.toml")
    source = Path("data", split_reference(settings.data.test[0].image)[0])
    shutil.copy(source, "new.h5")
    (folder / "new.toml").write_text(toml.replace("/path/new.h5", str(folder / "new.h5")))


def before_contacts(folder):
    shutil.copytree(ROOT / "weights", "weights")
    text = (ROOT / "docs" / "tutorials" / "contacts.md").read_text()
    for number, (name, toml) in enumerate(zip(("mine", "other"), re.findall(r"```toml\n(.*?)```", text, re.DOTALL))):
        Path(f"{name}.toml").write_text(toml.replace(f'"{name}.h5', f'"{folder}/{name}.h5'))
        tissue = synthesize((32, 64, 64), (10.0, 10.0, 10.0), number, neurites=40)
        for dataset, array in (("raw", tissue.raw), ("labels", tissue.neuron_ids)):
            with create_volume(f"{name}.h5:{dataset}", array.shape, array.dtype, (10.0, 10.0, 10.0)) as out:
                out[...] = array


def before_own_data(folder):
    tissue = synthesize((32, 64, 64), (10.0, 10.0, 10.0), neurites=40)
    for dataset, array in (("raw", tissue.raw), ("labels", tissue.neuron_ids)):
        with create_volume(f"mine.h5:{dataset}", array.shape, array.dtype, (10.0, 10.0, 10.0)) as out:
            out[...] = array


def before_connectome(folder):
    labels = np.ones((12, 20, 24), np.uint64)
    labels[:, :, 10:] = 2
    with create_volume("A_labels.h5:labels", labels.shape, labels.dtype, (40.0, 8.0, 8.0)) as out:
        out[...] = labels


def before_volumes(folder):
    pytest.importorskip("tensorstore", reason="the extra remote is not installed")
    before_connectome(folder)
    with create_volume("raw.h5:raw", (12, 20, 24), np.uint8, (40.0, 8.0, 8.0)) as out:
        out[...] = 7


def before_demo(folder):
    run("python train.py --cfg configs/demo.toml")
    run("python infer.py --cfg configs/demo.toml")


def before_proofreading(folder):
    """Edits of the demo's labels, and a prediction with decisions at the contacts of its tissue."""
    before_demo(folder)
    labels = open_volume(f"outputs/demo/{R}/test_im_labels.h5", "labels")[...]
    places = [tuple(np.argwhere(labels == one)[0].tolist()) for one in np.unique(labels)[1:4]]
    write_edits("edits.csv", [Edit("join", *places[:2]), Edit("drop", places[2])])
    for path in Path("outputs/demo").iterdir():  # the page makes the run anew, to the same labels
        if path.name != "data":
            remove(path)
    truth = learned.tissue(1)
    learned.predicted(folder / "mine_prediction.h5", learned.affinities(truth, 2.0, 1))
    Path("mine.toml").write_text(
        'name = "mine"\n[decode]\nkind = "affinities"\nfragments = "faces-1"\n'
        '[decode.learned]\nfile = "mine_contacts.json"\nfirst_size = 0.001\n')
    write_edits("mine_edits.csv", learned.answers(folder / "mine_prediction.h5", truth, 400))


def before_migration(folder):
    Path("tutorials").mkdir()
    shutil.copytree(ROOT / "tests" / "yaml", "tutorials", dirs_exist_ok=True)
    shutil.copy("tutorials/clefts.yaml", "tutorials/syn_cremi.yaml")
    for letter in "AB":
        image, labels = clefts()
        volume(f"cremi/im_{letter}.h5:main", image)
        volume(f"cremi/syn_{letter}.h5:main", labels)


def before_clefts(folder):
    before_migration(folder)
    text = (ROOT / "docs" / "tutorials" / "cremi_clefts.md").read_text()
    (folder / "challenge.toml").write_text(re.search(r"```toml\n(.*?)```", text, re.DOTALL)[1])
    for letter in "ABC":
        shutil.copy(f"datasets/corrected/im_{letter}.h5", f"datasets/corrected/im_{letter}+.h5")
    for name in ("clefts_A+.h5", "neurons_A+.h5"):
        volume(f"{name}:labels", clefts()[1])
    write_lightning(config.load(Settings, "configs/cremi/cremi_clefts.toml"))


def before_v1(folder):
    image, labels = clefts()
    volume("sample_A_20160501.hdf:volumes/raw", image)
    volume("sample_A_20160501.hdf:volumes/labels/clefts", labels)
    for letter in "BC":
        volume(f"datasets/cremi_v1/images/im_{letter}_v2_200.h5:main", image)
        volume(f"datasets/cremi_v1/gt-syn/syn_{letter}_v2_200.h5:main", labels)
    for path in ("images/im_A_v2_200.h5", "gt-syn/syn_A_v2_200.h5"):  # the page makes it, from the file of CREMI
        Path("datasets/cremi_v1", path).unlink(missing_ok=True)


def before_polarity(folder):
    shutil.rmtree("datasets/synthetic/emr50_small")  # the page makes it


def before_dbmim(folder):
    image, _ = clefts()
    for path in ("downloads/isbi2012/train-volume.tif", "downloads/isbi2012/test-volume.tif",
                 "downloads/datasets/SNEMI/train-input.tif", "downloads/datasets/SNEMI/test-input.tif"):
        volume(path, image)
    volume("part/a.h5:main", clefts(shape=(16, 64, 64))[0])
    Path("downloads/EM_pretrain_data").mkdir()
    with zipfile.ZipFile("downloads/EM_pretrain_data/FAFB_crop_hdf_1.zip", "w") as archive:
        archive.write("part/a.h5", "FAFB/a.hdf")


BEFORE = {"README.md": before_readme, "docs/benchmarks.md": before_benchmarks,
          "docs/connectome.md": before_connectome, "docs/embedding.md": before_demo,
          "docs/proofreading.md": before_proofreading,
          "docs/volumes.md": before_volumes, "docs/tuning.md": before_demo, "docs/migration.md": before_migration,
          "docs/tutorials/contacts.md": before_contacts,
          "docs/tutorials/own_data.md": before_own_data, "docs/tutorials/cremi_clefts.md": before_clefts,
          "docs/tutorials/cremi_clefts_v1.md": before_v1,
          "docs/tutorials/dbmim.md": before_dbmim, "docs/tutorials/emr50_polarity.md": before_polarity}


def write_lightning(settings):
    """last.ckpt: a file of the published net at the size of these settings."""
    net = build_model(settings.model, settings.data.patch)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lightning_files, "LEVELS", len(settings.model.rsunet.width))
        lightning_files.lightning("last.ckpt", net)


def after_import(folder):
    """The imported config at the size of a smoke test, its files, and a checkpoint of that size."""
    settings = config.load(Settings, "cremi.toml")
    small = reduced(settings, Path("outputs"))
    (folder / "cremi.toml").write_text(config.to_toml(small))
    write_files(settings, small)
    write_lightning(small)


def after_new(folder):
    """The recipe with a few steps of a narrow net."""
    settings = config.load(Settings, "mine.toml")
    small = replace(settings, model=narrow(settings.model), train=short(settings.train))
    (folder / "mine.toml").write_text(config.to_toml(small))


def after_pretraining(folder):
    """Published files of dbMiM, with the tensors and the notes that they hold."""
    import torch

    Path(HF).mkdir(parents=True)
    content = checkpoint.read(f"outputs/dbmim_pretrain_r33/checkpoints/step_{STEPS:09d}.pt")
    torch.save({"model": content["model"], "global_step": 12}, f"{HF}/pretrained_latest.pt")
    settings = config.load(Settings, R33)
    sizes = settings.model.transformer
    said = {"model": {"architecture": "unetr_aniso_em", "volume_size": list(settings.data.patch),
                      "patch_size": list(sizes.patch), "embed_dim": sizes.width, "depth": sizes.depth,
                      "num_heads": sizes.heads, "feature_size": sizes.features, "out_channels": 3}}
    net = build_model(settings.model, settings.data.patch)
    torch.save({"model": net.state_dict(), "global_step": 12, "config": said}, f"{HF}/finetuned_latest.pt")


def after_handover(folder):
    """changed.hdf5: the mapping with two of its objects joined."""
    shutil.copy("for_webknossos/agglomerates.hdf5", "changed.hdf5")
    with h5py.File("changed.hdf5", "a") as file:
        objects = file["segment_to_agglomerate"][...]
        objects[objects == 5] = 4
        file["segment_to_agglomerate"][...] = objects


AFTER = {"python -m emcore handover outputs/demo/results_step=600/test_im_labels.h5 for_webknossos --edits edits.csv":
         after_handover,
         "python -m emcore import-config tutorials/syn_cremi.yaml -o cremi.toml": after_import,
         "python -m emcore new mine.toml --image mine.h5:raw --labels mine.h5:labels --task neurons": after_new,
         "python train.py --cfg configs/dbmim/dbmim_pretrain_r33.toml": after_pretraining}


# ---- running


def run(line):
    """A command of a page at the small size, in this process; what it printed."""
    for pattern, value in SMALLER.items():
        line = re.sub(pattern, value, line)
    words = shlex.split(line)
    if words[0] == "torchrun":  # the number of processes is not what a page is about; test_train.py starts two
        words = ["python", *words[2:]]
    if words[1] == "-m":
        module, arguments = words[2], words[3:]
        if module == "emcore":
            name, arguments = arguments[0], arguments[1:]
            module = TOOLS[name][0] if name in TOOLS else name
        main = import_module(module).main
    else:
        assert words[1].removesuffix(".py") in SCRIPTS, line
        main, arguments = runpy.run_path(str(ROOT / words[1]))["main"], words[2:]
    out, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
        code = run_command(main, arguments)
    assert code == 0, f"{line}\n{out.getvalue()}\n{errors.getvalue()}"
    return out.getvalue()


def contents(folder):
    """File -> digest of its bytes, of every file below."""
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in folder.rglob("*") if path.is_file()}


def check(line, does, before, after, told):
    kind, patterns = does
    for pattern in patterns:
        if kind == "prints":
            assert re.search(pattern, told), f"{line} did not print {pattern}:\n{told}"
            continue
        pattern = pattern.replace("/./", "/")
        new = [path for path in fnmatch.filter(after, pattern) if path not in before]
        other = [path for path in fnmatch.filter(before, pattern) if path in after and before[path] != after[path]]
        found = new if kind == "makes" else other
        assert found, f"{line} left {pattern} as it was; it changed {sorted(set(after.items()) ^ set(before.items()))}"


@pytest.mark.parametrize("page", [pytest.param(page, marks=pytest.mark.slow if page in ALWAYS else pytest.mark.long)
                                  for page in TABLE if any(does for _, does in TABLE[page])])
def test_the_commands_of_a_page_do_what_it_says_one_after_the_other(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    prepare(page, tmp_path)
    if page in BEFORE:
        BEFORE[page](tmp_path)
    for line in commands_of(ROOT / page):
        does = next(does for row, does in TABLE[page] if same_command(line, row))
        if does is None:
            continue
        before = contents(tmp_path)
        if does == "instead":  # another way to do what the line before did: in a folder of its own
            told, does = run(f"{line} outputs=instead"), makes(f"instead/*/checkpoints/step_{STEPS:09d}.pt")
        else:
            told = run(line)
        check(line, does, before, contents(tmp_path), told)
        if line in AFTER:
            AFTER[line](tmp_path)


def test_a_command_that_does_nothing_is_noticed(tmp_path):
    before = {"outputs/a/scores.json": "1"}
    for does in (makes("outputs/*/scores.json"), changes("outputs/*/scores.json"), prints("scores")):
        with pytest.raises(AssertionError):
            check("python evaluate.py", does, before, dict(before), "")
    check("python evaluate.py", changes("outputs/*/scores.json"), before, {"outputs/a/scores.json": "2"}, "")
    check("python evaluate.py", makes("outputs/*/new"), before, before | {"outputs/a/new": "2"}, "")
