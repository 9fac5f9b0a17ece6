"""Forward pass and training step of every net in every mode: python -m bench.training [--net NAME] [--chosen].

Each mode runs in a process of its own, in turns with the others, because some builds of torch crash in some of them.
The ceiling is what single convolutions of the RSUNet's sizes reach on this machine in the same run.
--recipe CFG trains a config for --steps steps and prints the share of the time that waits for data.
"""

import argparse
import csv
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from emcore.config import to_table
from emcore.engine.arithmetic.machine import LIMIT
from emcore.engine.arithmetic.mode import Mode
from emcore.engine.arithmetic.probe import SAFE, choose_mode, work_of
from emcore.settings.model import MedNeXtModel, Model, RSUNetModel, RSUNetSizes, UNETRModel, UNetV1Model
from emcore.settings.train import Train

ROOT = Path(__file__).resolve().parent.parent
NETS = {
    "rsunet": (RSUNetModel(rsunet=RSUNetSizes(width=(32, 64, 96, 128, 160), depth_2d=1)), (18, 256, 256)),
    "unet_v1": (UNetV1Model(), (8, 320, 320)),
    "unetr": (UNETRModel(out_channels=3), (16, 224, 224)),
    "mednext": (MedNeXtModel(out_channels=12), (32, 160, 160)),
}
QUICK = {"rsunet": (6, 64, 64), "unet_v1": (4, 64, 64), "unetr": (8, 32, 32), "mednext": (16, 32, 32)}
CONVOLUTIONS = [(32, (1, 3, 3), 1), (32, (3, 3, 3), 1), (64, (3, 3, 3), 2), (96, (3, 3, 3), 4), (128, (3, 3, 3), 8)]


def modes(device: str, plain: bool) -> list[Mode]:
    """The first is what a user of eager fp32 code gets, its memory pages cleared anew: the reference of the ratios."""
    limit = SAFE if device == "cpu" and not os.environ.get(LIMIT) else ""
    found = [Mode(device, precision, layout, compiled, limit if precision == "bf16" else "")
             for compiled in ((False,) if plain else (False, True)) for precision in ("fp32", "bf16")
             for layout in ("contiguous", "channels_last")]
    return [mode for mode in found if not (mode.compile and mode.layout == "contiguous")]


def title(mode: Mode) -> str:
    return f"{mode.precision} {mode.layout.replace('_', ' ')}{' compiled' if mode.compile else ''}"


def run(work: dict, mode: Mode, limit: float) -> dict:
    """What the child measured; {"failed": why} where it could not."""
    environment = {**os.environ, **({LIMIT: mode.instructions} if mode.instructions else {})}
    try:
        done = subprocess.run([sys.executable, "-m", "bench.training", "--child"], cwd=ROOT, text=True, timeout=limit,
                              capture_output=True, env=environment, input=json.dumps([work, mode.__dict__]))
    except subprocess.TimeoutExpired:
        return {"failed": f"more than {limit:.0f} s"}
    if done.returncode < 0:
        return {"failed": f"killed by signal {-done.returncode}"}
    if done.returncode:
        return {"failed": (done.stderr.strip().splitlines() or ["?"])[-1][:60]}
    return json.loads(done.stdout.splitlines()[-1])


def child() -> None:
    """Seconds of one step or forward pass after a first that is not counted, and its floating point operations."""
    work, mode = json.loads(sys.stdin.read())
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from emcore.config import from_table
    from emcore.engine.arithmetic.net import autocast, place
    from emcore.engine.memory import keep_pages
    from emcore.models.build import build_model

    mode = Mode(**mode)
    if work["keep_pages"]:
        keep_pages(mode.device)
    device = torch.device(mode.device)
    torch.manual_seed(0)
    if "convolution" in work:
        width, kernel, shrink = work["convolution"]
        _, *shape = work["patch"]
        shape = [work["patch"][0], *(n // shrink for n in shape)]
        net = torch.nn.Conv3d(width, width, kernel, padding=tuple(k // 2 for k in kernel), bias=False).to(device)
        image = torch.rand(work["samples"], width, *shape, device=device)
    else:
        model = from_table(Model, work["model"], "model")
        net = build_model(model, tuple(work["patch"])).to(device)
        image = torch.rand(work["samples"], model.in_channels, *work["patch"], device=device)
    trains = work["what"] == "step"
    net.train(trains)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        net.eval()(image[:1])
    net.train(trains)
    flops = counter.get_total_flops() * work["samples"] * (3 if trains else 1)
    runner = place(net, mode)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4)
    if mode.layout == "channels_last" and image.shape[1] > 1:
        image = image.contiguous(memory_format=torch.channels_last_3d)

    def once() -> float:
        start = time.perf_counter()
        with torch.set_grad_enabled(trains), autocast(mode.precision, mode.device):
            out = runner(image)
        if trains:
            values = list(out.values()) if isinstance(out, dict) else [out]
            target = torch.zeros_like(values[0])
            torch.nn.functional.binary_cross_entropy_with_logits(values[0].float(), target.float()).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    first = once()
    print(json.dumps({"first": first, "seconds": min(once() for _ in range(work["repeats"])), "flops": flops}))


def table(name: str, model: Model, patch: tuple, device: str, samples: int, rounds: int, limit: float,
          plain: bool, only_chosen: bool) -> None:
    single = {"patch": patch, "samples": samples, "what": "forward", "repeats": 3, "keep_pages": True}
    bf16 = Mode(device, "bf16", "channels_last", False)
    ceiling = max((flops_of(run({"convolution": sizes, **single}, bf16, limit)) for sizes in CONVOLUTIONS),
                  default=0.0) if name == "rsunet" else 0.0
    if ceiling:
        print(f"ceiling: the fastest bf16 convolution of these sizes reaches {ceiling / 1e12:.2f} TFLOP/s")
    chosen = choose_mode(work_of(model, patch, samples), Train(batch=samples), device, 100_000)
    print(f"{name}, {samples} x {'x'.join(map(str, patch))}; chosen by default: {title(chosen)}")
    print(f"  {'mode':<30}{'forward s':>11}{'ratio':>7}{'step s':>9}{'ratio':>7}{'Mvoxel/s':>10}{'TFLOP/s':>9}")
    wanted = [modes(device, True)[0], chosen] if only_chosen else modes(device, plain)
    table_of = {mode: {"forward": [], "step": []} for mode in wanted}
    flops = 0.0
    for _ in range(rounds):
        for number, (mode, found) in enumerate(table_of.items()):
            for what, values in found.items():
                answer = run({"model": to_table(model), "patch": patch, "samples": samples, "what": what,
                              "repeats": 2, "keep_pages": number > 0}, mode, limit)
                values.append(answer.get("seconds", answer.get("failed")))
                flops = answer.get("flops", flops) if what == "step" else flops
    reference = {}
    for mode, found in table_of.items():
        cells = []
        for what, values in found.items():
            good = [value for value in values if isinstance(value, float)]
            seconds = statistics.median(good) if good else None
            reference.setdefault(what, seconds)
            cells += [f"{seconds:.2f}" if seconds else str(values[0])[:18],
                      f"{reference[what] / seconds:.1f}" if seconds and reference[what] else "-"]
        speed = samples * patch[0] * patch[1] * patch[2] / seconds / 1e6 if seconds else 0
        rate = f"{flops / seconds / 1e12:.2f}" if seconds else "-"
        print(f"  {title(mode):<30}{cells[0]:>11}{cells[1]:>7}{cells[2]:>9}{cells[3]:>7}{speed:>10.2f}{rate:>9}",
              flush=True)


def flops_of(answer: dict) -> float:
    return answer["flops"] / answer["seconds"] if "seconds" in answer else 0.0


def recipe(config: str, steps: int, overrides: list[str]) -> None:
    """Trains a config for some steps and prints what speed.csv says of the last ones."""
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run([sys.executable, str(ROOT / "train.py"), "--cfg", config, f"outputs={folder}",
                               "name=bench", f"train.steps={steps}", "train.preview_steps=0", "train.validate.steps=0",
                               *overrides], text=True, capture_output=True)
        if done.returncode:
            sys.exit(done.stderr)
        print(done.stdout.splitlines()[0])
        with open(Path(folder) / "bench" / "speed.csv", newline="") as file:
            last = list(csv.DictReader(file))[-1]
    print(f"{config}: {float(last['seconds']):.3f} s a step, {100 * float(last['waiting']):.1f} % of it waiting for "
          f"data, {float(last['voxels_per_second']) / 1e6:.2f} Mvoxel/s, {float(last['tflops']):.2f} TFLOP/s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--net", choices=NETS, action="append", help="which nets; all without")
    parser.add_argument("--quick", action="store_true", help="tiny patches, one round: does everything run?")
    parser.add_argument("--samples", type=int, default=1, help="patches of one step")
    parser.add_argument("--rounds", type=int, default=3, help="times that every mode has its turn")
    parser.add_argument("--plain", action="store_true", help="leave out what is compiled")
    parser.add_argument("--chosen", action="store_true", help="only the reference and what is chosen by default")
    parser.add_argument("--limit", type=float, default=600.0, help="seconds one mode may take")
    parser.add_argument("--recipe", help="config to train for --steps steps instead")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("overrides", nargs="*", help="settings of --recipe to change")
    arguments = parser.parse_args()
    if arguments.child:
        child()
        return
    if arguments.recipe:
        recipe(arguments.recipe, arguments.steps, arguments.overrides)
        return
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    print(f"torch {torch.__version__}, {torch.cuda.get_device_name() if device == 'cuda' else 'CPU'}, "
          f"{torch.get_num_threads()} threads")
    for name in arguments.net or NETS:
        model, patch = NETS[name]
        patch = QUICK[name] if arguments.quick else patch
        table(name, model, patch, device, arguments.samples, 1 if arguments.quick else arguments.rounds,
              arguments.limit, arguments.plain, arguments.chosen)


if __name__ == "__main__":
    main()
