"""python -m emcore COMMAND: the three scripts and the small tools."""

import runpy
import sys
from importlib import import_module
from pathlib import Path

from emcore.errors import run_command

SCRIPTS = {
    "train": "train a network from a TOML config (also under torchrun -m emcore train)",
    "infer": "predict a volume and decode it into labels",
    "evaluate": "score predictions against truth, and tune the decoding",
}
# command -> (module with main(arguments), what it does)
TOOLS = {
    "new": ("emcore.new.command", "write a recipe for your own volume and labels, chosen from what is in them"),
    "config": ("emcore.settings.printed", "print every setting of a script with its default and meaning, as TOML"),
    "augment": ("emcore.data.sheet", "draw every augmentation of a config on its first sample"),
    "inspect": ("emcore.volumes.inspect", "list datasets, shapes, types, resolution and labels of files"),
    "convert": ("emcore.volumes.convert", "copy a volume between formats, chunk by chunk"),
    "serve": ("emcore.volumes.serve", "serve a folder on 127.0.0.1 for Neuroglancer"),
    "synth": ("emcore.synth", "write synthetic tissue with exact ground truth"),
    "mesh": ("emcore.blocks.meshes", "write the closed surface of every object for Neuroglancer, or as PLY or OBJ"),
    "statistics": ("emcore.blocks.label_statistics", "write voxels, box, centroid and contacts of every label as CSV"),
    "explain": ("emcore.blocks.explain", "say why a voxel has its label, and what joins it to another one"),
    "handover": ("emcore.blocks.handover", "write supervoxels, mapping and edges for webknossos, and take edits back"),
    "blockwise": ("emcore.systems.dbmim.blockwise", "score a prediction in blocks at their seams and away from them"),
    "prepare": ("emcore.systems.dbmim.prepare", "put public volumes where the recipes look for them, with a manifest"),
    "submit": ("emcore.volumes.submit", "write labels as the file that a challenge takes"),
    "score": ("emcore.metrics.score", "score labels, clefts, skeletons or synaptic partners against the truth"),
    "connectome": ("emcore.report.connectome", "tell which neuron talks to which, from labels of neurons and synapses"),
    "doubts": ("emcore.report.doubts", "list where labels may be wrong, most urgent first, and ask about it on a page"),
    "view": ("emcore.report.viewer", "make one folder to look at: volumes, meshes, synapses, and a page in 3-d"),
    "skeletonize": ("emcore.segment.skeleton_command", "write the skeletons of labels as SWC or for Neuroglancer"),
    "import-config": ("emcore.systems.pytc.config", "turn a YAML config of PyTorch Connectomics into TOML"),
    "import-checkpoint": ("emcore.systems.pytc.checkpoint", "turn a Lightning checkpoint of an RSUNet into ours"),
    "learn-contacts": ("emcore.decode.learn_contacts", "train the classifier of [decode.learned] from labels"),
    "download": ("emcore.volumes.download", "fetch public data of the tutorials, resumable, checked"),
    "legacy_v1": ("emcore.systems.legacy_v1.__main__", "train and test with the flags of the 2019 synapse tutorial"),
    "models": ("emcore.cards", "list the trained weights that come with emcore, and how each is used"),
    "warm": ("emcore.warm", "compile ahead what the first command of each kind would wait for"),
    "report": ("emcore.report", "write the page of a finished run"),
}


def usage() -> str:
    lines = ["usage: python -m emcore COMMAND [ARGUMENTS]   (COMMAND --help says more)", ""]
    lines += [f"  {name:<19}{text}" for name, text in SCRIPTS.items()]
    lines += [f"  {name:<19}{text}" for name, (_, text) in TOOLS.items()]
    return "\n".join(lines)


def script_path(name: str) -> Path:
    """The script beside the package in a checkout, or the copy that a wheel carries."""
    package = Path(__file__).resolve().parent
    installed = package / "scripts" / f"{name}.py"
    return installed if installed.exists() else package.parent / f"{name}.py"


def main() -> int:
    name, arguments = (sys.argv[1], sys.argv[2:]) if len(sys.argv) > 1 else ("--help", [])
    if name in ("-h", "--help", "help"):
        print(usage())
        return 0
    if name in SCRIPTS:
        path = script_path(name)
        sys.argv = [str(path), *arguments]
        runpy.run_path(str(path), run_name="__main__")
        return 0
    if name not in TOOLS:
        print(f"error: unknown command {name!r}; there are {', '.join([*SCRIPTS, *TOOLS])}", file=sys.stderr)
        return 2
    return run_command(import_module(TOOLS[name][0]).main, arguments)


if __name__ == "__main__":
    sys.exit(main())
