"""Prediction: python -m bench.predict [--shape 36 512 512] [--only window|stream] [--stream-shape 1024 1536 1536].

window: a volume through the RSUNet of the CREMI recipe, half overlapping windows, ours as infer.py does it against
MONAI's sliding_window_inference as a user calls it (fp32, eager). stream: a large volume from disk to disk through one
convolution, which shows the memory and what everything around the net costs. Each runs in a process of its own.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

WINDOW = (18, 256, 256)
STREAM = (8, 256, 256)


def child(work: dict) -> dict:
    import resource

    import numpy as np
    import torch

    found = {}
    if work["what"] == "stream":
        found = stream(work)
    else:
        from emcore.engine.arithmetic.prediction import decide
        from emcore.engine.memory import keep_pages
        from emcore.models.rsunet import RSUNet
        from emcore.prediction import predict
        from emcore.prediction.windows import passes
        from emcore.settings import Settings
        from emcore.settings.data import Data
        from emcore.settings.model import RSUNetModel, RSUNetSizes
        from emcore.settings.predict import Activation, Infer

        torch.manual_seed(0)
        net = RSUNet(RSUNetModel(rsunet=RSUNetSizes((32, 64, 96, 128, 160), depth_2d=1))).eval()
        volume = np.random.default_rng(0).random(work["shape"], dtype=np.float32)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        start = time.perf_counter()
        if work["what"] == "ours":
            keep_pages("cpu")  # infer.py does the same
            infer = Infer(window=WINDOW, blend="gaussian", activation=(Activation(kind="none"),))
            arithmetic = decide(Settings("bench", device="cpu", infer=infer), net, passes(volume.shape, infer, WINDOW))
            values = predict(net, volume, window=WINDOW, infer=infer, data=Data(normalise="none"),
                             arithmetic=arithmetic)[0]
            found["how"] = str(arithmetic)
        else:
            from monai.inferers import sliding_window_inference
            with torch.no_grad():
                values = sliding_window_inference(torch.from_numpy(volume)[None, None], WINDOW, 4, net, overlap=0.5,
                                                  mode="gaussian")[0, 0].numpy()
            found["how"] = "fp32 eager"
        found |= {"seconds": time.perf_counter() - start, "before": before / 1024,
                  "middle": float(values[values.shape[0] // 2].std())}
    return {**found, "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def stream(work: dict) -> dict:
    """Seconds in all, in the net, reading and writing."""
    import torch

    from emcore.prediction import predict, streaming, tiles
    from emcore.settings.data import Data
    from emcore.settings.predict import Activation, Infer

    spent = {"net": 0.0, "disk": 0.0}

    def timed(function, what):
        def run(*arguments, **options):
            start = time.perf_counter()
            try:
                return function(*arguments, **options)
            finally:
                spent[what] += time.perf_counter() - start
        return run

    torch.manual_seed(0)
    net = torch.nn.Conv3d(1, 3, 3, padding=1).eval()
    net.forward = timed(net.forward, "net")
    streaming.read = timed(streaming.read, "disk")
    tiles.write_block = timed(tiles.write_block, "disk")
    start = time.perf_counter()
    predict(net, work["path"], Path(work["folder"]) / "out_prediction.h5", window=STREAM, infer=Infer(
        overlap=work["overlap"], dtype="uint8", activation=(Activation(),)), data=Data(normalise="divide"))
    return {"seconds": time.perf_counter() - start, **spent}


def run(work: dict) -> dict:
    done = subprocess.run([sys.executable, "-m", "bench.predict", "--child"], input=json.dumps(work), text=True,
                          capture_output=True, cwd=Path(__file__).resolve().parent.parent)
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def window_rows(shape: list[int]) -> None:
    ours, peer = run({"what": "ours", "shape": shape}), run({"what": "monai", "shape": shape})
    print(f"{'x'.join(map(str, shape))}, RSUNet 32-160, windows {'x'.join(map(str, WINDOW))}, 50 % overlap, gaussian")
    for name, row in (("emcore", ours), ("MONAI", peer)):
        print(f"  {name:<8}{row['how']:<22}{row['seconds']:8.1f} s  {row['peak'] - row['before']:8.0f} MiB above the "
              "net")
    print(f"  {peer['seconds'] / ours['seconds']:.1f} times faster (goal 3), "
          f"{(ours['peak'] - ours['before']) / (peer['peak'] - peer['before']):.2f} of the memory (goal 0.5)")


def stream_rows(shape: list[int], overlap: float, folder: str | None) -> None:
    import numpy as np

    from emcore.volumes import create_volume

    with tempfile.TemporaryDirectory(dir=folder) as place:
        path = Path(place) / "volume.h5"
        random = np.random.default_rng(0)
        with create_volume(f"{path}:raw", shape, "uint8", (10, 10, 10), (0, 0, 0), {}) as out:
            for z in range(0, shape[0], 32):
                block = random.integers(0, 255, (min(32, shape[0] - z), *(n // 8 for n in shape[1:])), np.uint8)
                out[z:z + 32] = block.repeat(8, 1).repeat(8, 2)
        row = run({"what": "stream", "path": f"{path}:raw", "folder": place, "overlap": overlap})
    voxels = shape[0] * shape[1] * shape[2]
    print(f"{'x'.join(map(str, shape))} ({voxels / 1e9:.2f} Gvoxel) through one convolution, 3 channels out, uint8, "
          f"{100 * overlap:.0f} % overlap")
    print(f"  {row['seconds']:.0f} s, {voxels / row['seconds'] / 1e6:.1f} Mvoxel/s; net {row['net']:.0f} s, disk "
          f"{row['disk']:.0f} s (reading and writing run beside the net): "
          f"{100 * (row['net'] + row['disk']) / row['seconds']:.0f} % (goal 60)")
    print(f"  peak resident memory {row['peak'] / 1024:.2f} GiB (goal 1.5 GB)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", nargs=3, type=int, default=[36, 512, 512])
    parser.add_argument("--stream-shape", nargs=3, type=int, default=[1024, 1536, 1536])
    parser.add_argument("--overlap", type=float, default=0.5, help="of the windows of stream")
    parser.add_argument("--folder", help="where the large volume is made, with room for four of it")
    parser.add_argument("--only", choices=["window", "stream"])
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(child(json.loads(sys.stdin.read()))))
        return
    if arguments.only != "stream":
        window_rows(arguments.shape)
    if arguments.only != "window":
        stream_rows(arguments.stream_shape, arguments.overlap, arguments.folder)


if __name__ == "__main__":
    main()
