"""What `new` makes of real volumes, as a new user would have it: no setting is touched by hand.

    python -m bench.new DATA OUT --minutes 30 --only fib25

DATA holds the volumes of docs/benchmarks.md. For each of them it writes the recipe, trains, predicts and scores the
part that the recipe holds out, finds the threshold of neurons there, and scores the other volume of the same tissue
with it. The scores stand in OUT, as in the folders of runs; the same command again goes on where it stopped.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# name -> image and labels to learn from, those of the volume that is scored, and the task
VOLUMES = {
    "fib25": ("fib25_train.h5:raw", "fib25_train.h5:labels", "fib25_val.h5:raw", "fib25_val.h5:labels", "neurons"),
    "mitochondria": ("vnc_train.h5:raw", "vnc_train.h5:mitochondria", "vnc_val.h5:raw", "vnc_val.h5:mitochondria",
                     "mask"),
    "isbi2012": ("isbi2012_train.h5:raw", "isbi2012_train.h5:inside", "isbi2012_val.h5:raw", "isbi2012_val.h5:inside",
                 "membranes"),
    "clefts": ("vnc_train.h5:raw", "vnc_train.h5:synapses", "vnc_val.h5:raw", "vnc_val.h5:synapses", "synapses"),
    "gala": ("gala_train.h5:raw", "gala_train.h5:labels", "fib25_val.h5:raw", "fib25_val.h5:labels", "neurons"),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--only", choices=VOLUMES, action="append")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    data = options.data.resolve()
    for name in options.only or VOLUMES:
        image, labels, other, truth, task = VOLUMES[name]
        recipe = options.out / f"{name}.toml"
        if not recipe.exists():
            run(options.out, "-m", "emcore", "new", recipe.name, "--image", f"{data}/{image}", "--labels",
                f"{data}/{labels}", "--task", task, "--minutes", str(options.minutes))
        for script in ("train", "infer", "evaluate"):
            run(options.out, ROOT / f"{script}.py", "--cfg", recipe.name)
        results = max((options.out / "outputs" / name).glob("results_step=*"), key=lambda path: path.stat().st_mtime)
        best = []
        if task == "neurons":
            run(options.out, ROOT / "evaluate.py", "--cfg", recipe.name, "--tune")
            best = ["--params", str((results / "best_params.toml").resolve())]
        test = f'data.test=[{{image="{data}/{other}", label="{data}/{truth}", name="other"}}]'
        apart = ["--results", f"outputs/{name}_other", *best, test]
        run(options.out, ROOT / "infer.py", "--cfg", recipe.name, *apart)
        run(options.out, ROOT / "evaluate.py", "--cfg", recipe.name, *apart)
        for place, folder in (("held out", results), (other, options.out / "outputs" / f"{name}_other")):
            for volume in json.loads((folder / "scores.json").read_text()).values():
                found = (f"{row['score']} {row['value']}" for row in volume["scores"])
                print(f"{name}, {place}: {', '.join(found)}", flush=True)
    return 0


def run(folder: Path, *words: object) -> None:
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    subprocess.run([sys.executable, *map(str, words)], cwd=folder, check=True, env={**os.environ, "PYTHONPATH": paths})


if __name__ == "__main__":
    sys.exit(main())
