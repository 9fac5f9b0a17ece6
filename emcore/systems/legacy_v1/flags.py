"""The flags of the tutorial's two scripts, with their defaults; what they meant then is what they mean here."""

import argparse
from collections.abc import Sequence

from emcore.errors import InputError

NUMBERS = {"neuron": 1, "synapse": 2}
CHANNELS = {"neuron": 3, "synapse": 1}  # the channels of each task's net
TASKS = {"1": "neuron", "neuron": "neuron", "2": "synapse", "synapse": "synapse"}
WORDS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False, "": False}
Triple = tuple[int, int, int]


def read_flags(mode: str, arguments: Sequence[str]) -> argparse.Namespace:
    """The flags of one command, checked; mode is train or test."""
    parser = argparse.ArgumentParser(
        prog=f"python -m emcore legacy_v1 {mode}",
        description="The synapse tutorial of 2019. Sizes are z,y,x; lists of files are joined by @.")
    add = parser.add_argument
    add("--task", default="1" if mode == "train" else None,
        help="1 or neuron, 2 or synapse: the numbers of the tutorial (a day later 0 and 1); test takes that of -pm")
    add("-t", "--train", default="", help="folder of the files, put before each name as it stands: end it in /")
    add("-dn", "--img-name", default="im_uint8.h5", help="image files (dataset main, uint8)")
    add("-o", "--output", default="result/train/", help="folder of what is written")
    add("-mi", "--model-input", default="31,204,204", help="voxels of a patch")
    add("-mo", "--model-output", help="has no effect, as then")
    add("-mp", "--model-pad", default="", help="voxels by which volumes are mirrored; test: half a patch by default")
    add("-ac", "--architecture", default="", help="unetv0")
    add("-lm", "--load-model", default="", help="True loads -pm; False does not (then, any word did)")
    add("-pm", "--pre-model", default="", help="weights to load, a file volume_<iteration>.pth")
    add("-g", "--num-gpu", type=int, default=1, help="how many GPUs")
    add("-c", "--num-cpu", type=int, default=1, help="processes that read patches")
    add("-b", "--batch-size", type=int, default=1, help="patches of one step, over all GPUs")
    add("--out-channel", type=int, help="of the net; by default 1 for synapses, 3 for neurons, or as in -pm")
    if mode == "train":
        _add_training(add)
    else:
        add("--test-stride", default="", help="voxels between patches; half a patch by default")
        add("--test-augmentation", default="", help="True means the mean of all 16 flips and turns")
    flags = parser.parse_args(arguments)
    return _checked(flags, mode)


def _add_training(add) -> None:
    add("-ln", "--seg-name", default="seg-groundtruth2-malis.h5", help="label files, one for each image")
    add("-ft", "--finetune", help="has no effect, as then")
    add("-lt", "--loss", help="has no effect, as then: the loss is weighted cross-entropy")
    add("-lr", type=float, default=1e-4, help="learning rate at the start")
    add("--iteration-total", type=int, default=1000, help="the last iteration, counted from 0")
    add("--iteration-save", type=int, default=100, help="iterations between files volume_<iteration>.pth")
    add("-vm", "--valid-mask", help="of a task that is not here: refused")
    add("--weight-rule", choices=["A", "B"], default="B", help="B weighs clefts up; A, of May 2019, the rest down")
    add("--reject-voxels", type=int, default=100, help="synapses: samples with no more cleft voxels are rejected")
    add("--reject-keep", type=float, default=0.1, help="the chance to keep such a sample all the same")
    add("--smooth-labels", default="True", help="round the outlines as then, which erases what is 3 pixels thin")
    add("--train-pad", default="", help="True mirrors training volumes by half a patch")
    add("--seed", type=int, default=0, help="of weights and samples")


def _checked(flags: argparse.Namespace, mode: str) -> argparse.Namespace:
    if flags.task is not None and flags.task not in TASKS:
        raise InputError(f"--task is 1 (neuron) or 2 (synapse), as the tutorial numbers them; got {flags.task}")
    flags.task = TASKS.get(flags.task)
    if flags.architecture != "unetv0":
        raise InputError(f"-ac: of the nets of that time there is unetv0; got {flags.architecture or 'none'}")
    flags.folder = flags.train.split("@")[0]
    flags.images = [flags.folder + name for name in flags.img_name.split("@")]
    flags.patch = triple("-mi", flags.model_input)
    flags.pad = triple("-mp", flags.model_pad) if flags.model_pad else None
    flags.load_model = word("-lm", flags.load_model)
    if flags.load_model and not flags.pre_model:
        raise InputError("-lm True needs the file to load: -pm outputs/volume_50000.pth")
    for name, value, least in (("-b", flags.batch_size, 1), ("-c", flags.num_cpu, 0), ("-g", flags.num_gpu, 0)):
        if value < least:
            raise InputError(f"{name} must be {least} or more; got {value}")
    if mode == "test":
        flags.stride = triple("--test-stride", flags.test_stride) if flags.test_stride else None
        if flags.stride and not all(0 < step <= size for step, size in zip(flags.stride, flags.patch)):
            raise InputError(f"--test-stride must be 1 to the patch {list(flags.patch)} on every axis; got "
                             f"{list(flags.stride)}")
        flags.test_augmentation = word("--test-augmentation", flags.test_augmentation)
        return flags
    if flags.valid_mask:
        raise InputError("-vm belongs to the mitochondria skeletons of a later version, which are not rebuilt here")
    flags.labels = [flags.folder + name for name in flags.seg_name.split("@")]
    if len(flags.labels) != len(flags.images):
        raise InputError(f"-dn names {len(flags.images)} images and -ln {len(flags.labels)} label files; each image "
                         "needs its own, in the same order")
    if flags.iteration_total < 0 or flags.iteration_save < 1:
        raise InputError("--iteration-total must be 0 or more and --iteration-save 1 or more; got "
                         f"{flags.iteration_total} and {flags.iteration_save}")
    if flags.lr <= 0:
        raise InputError(f"-lr must be above 0; got {flags.lr}")
    flags.smooth_labels, flags.train_pad = (word(f"--{name.replace('_', '-')}", getattr(flags, name))
                                            for name in ("smooth_labels", "train_pad"))
    return flags


def triple(flag: str, text: str) -> Triple:
    """Three numbers "z,y,x"."""
    parts = text.split(",")
    if len(parts) != 3 or not all(part.strip().isdigit() for part in parts):
        raise InputError(f"{flag} takes three numbers z,y,x such as 8,256,256; got {text!r}")
    return tuple(int(part) for part in parts)


def word(flag: str, text: str) -> bool:
    """True or False as people write it."""
    if text.lower() not in WORDS:
        raise InputError(f"{flag} takes True or False; got {text!r}")
    return WORDS[text.lower()]
