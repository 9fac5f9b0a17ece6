"""Where results stand, whether those that are there are the ones asked for, and what a script does if they are not."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from emcore import config, record
from emcore.cards import checkpoint_file
from emcore.errors import InputError
from emcore.reading import read_text
from emcore.record import LABELS, listed
from emcore.settings import Settings
from emcore.settings.data import VolumeFiles, result_names
from emcore.settings.decode import Decode
from emcore.volumes import is_there, open_volume
from emcore.volumes.address import located

STEP = "results_step="  # folders in a run's own folder
BEST_FILE = "best.json"  # the best checkpoints of a run, for those that read none
WEIGHTS = "_weights="  # between the name of a run and of a checkpoint that is not of this run


def settings_of(folder: Path) -> Settings:
    """The settings of the run that stands in a folder, which may have been moved or renamed."""
    if not (folder / "config.toml").is_file():
        raise InputError(f"{folder} is not the folder of a run: it has no config.toml; train.py makes one")
    settings = config.from_table(Settings, config.read_toml(folder / "config.toml"))
    return replace(settings, name=folder.name, outputs=str(folder.parent))


def run_folder(settings: Settings) -> Path:
    return Path(settings.outputs) / settings.name


def folder_of(settings: Settings, checkpoint: Path, step: int) -> Path:
    """Results of a run's own checkpoints stand in its folder; those of other weights stand beside that folder."""
    own = run_folder(settings)
    if checkpoint.resolve().parent == (own / "checkpoints").resolve():
        return own / f"{STEP}{step}"
    return own.with_name(f"{own.name}{WEIGHTS}{checkpoint.stem}")


def newest(settings: Settings) -> Path:
    """The results of the run's newest checkpoint that has some."""
    folder = run_folder(settings)
    steps = [(int(number), path) for path in folder.glob(f"{STEP}*") if (number := path.name[len(STEP):]).isdigit()]
    if steps:
        return max(steps)[1]
    others = sorted(str(path) for path in folder.parent.glob(f"{folder.name}{WEIGHTS}*"))
    beside = f"; there are results of other weights, to be named by --results: {', '.join(others)}" if others else ""
    raise InputError(f"{folder} has no results: run infer.py first{beside}")


def of_checkpoint(settings: Settings, choice: str) -> Path:
    """The results of a checkpoint that is not read: a file or a name, "best", or "", the newest that has some."""
    if not choice:
        return newest(settings)
    path = named_best(run_folder(settings)) if choice == "best" else checkpoint_file(choice)
    number = path.stem.rpartition("_")[2]  # 000000600 in step_000000600
    return folder_of(settings, path, int(number) if number.isdigit() else 0)


def known_weights(settings: Settings, choice: str,
                  folder: Path | None) -> tuple[Path, dict[str, Any], dict[str, Any]] | None:
    """What all predictions of a choice of weights are there for: their folder, the weights and the table [model].

    It follows from their records where these were made of the same bytes of the checkpoint and by the same choice among
    its weights: then nothing in that file is new. None where a prediction is missing or the file itself must be read.
    """
    if choice == "best":  # what a run monitored stands in its checkpoints
        return None
    steps = sorted((run_folder(settings) / "checkpoints").glob(f"step_{'[0-9]' * 9}.pt"), reverse=True)
    if not choice and not steps:
        return None
    path = checkpoint_file(choice) if choice else steps[0]
    given, folder = folder, folder or of_checkpoint(settings, str(path))
    predictions = [prediction for prediction, _ in files_of(settings, folder)]
    if not predictions or not path.is_file() or not all(prediction.exists() for prediction in predictions):
        return None
    try:
        stored, digest = record.read(predictions[0]), record.digest_of_file(path)
    except (InputError, OSError):  # who reads the weights, or mends the prediction, says what is wrong
        return None
    weights = stored["weights"] if stored else {}
    if weights.get("choice") != settings.infer.weights or weights.get("file") != digest:
        return None
    if not given and folder != folder_of(settings, path, weights["step"]):  # a file that was renamed
        return None
    net = record.with_defaults(stored["settings"], record.SETTINGS)["model"]
    return folder, weights | {"checkpoint": str(path)}, net


def named_best(run: Path) -> Path:
    """The best checkpoint that is still there, as the run says it."""
    try:
        steps = [int(step) for step, _ in json.loads(read_text(run / BEST_FILE))["best"]]
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        steps = []
    paths = [run / "checkpoints" / f"step_{step:09d}.pt" for step in steps]
    found = next((path for path in paths if path.exists()), None)
    if found is None:
        raise InputError(f"{run / BEST_FILE} names no checkpoint that is there: name the folder of results by "
                         "--results")
    return found


def files_of(settings: Settings, results: Path) -> list[tuple[Path, Path]]:
    """The prediction and the labels of every test volume."""
    return [(results / f"{name}_prediction.h5", results / f"{name}_labels.h5") for name in result_names(settings.data)]


def files_of_stored(stored: str | Path) -> tuple[Path, Path]:
    """A stored prediction that is named by --from, and the labels that are made of it."""
    path = Path(stored)
    return path, path.with_name(f"{name_of_stored(path)}_labels.h5")


def name_of_stored(stored: Path) -> str:
    """The name of a stored prediction in results: that of its file, without what tells that it is a prediction."""
    return stored.stem.removesuffix("_prediction")


def stand_in(settings: Settings, stored: Sequence[str]) -> tuple[Settings, list[tuple[Path, Path]]]:
    """Settings whose volumes of data.test are those of stored predictions, and the files of each.

    Where data.test is empty there is no truth, and image and box are those that the record of the prediction names.
    """
    files, data = [files_of_stored(path) for path in stored], settings.data
    for prediction, _ in files:
        open_volume(prediction)  # says what is wrong with it
    if data.test and len(data.test) != len(files):
        raise InputError(f"--from must be given once for each of the {len(data.test)} volumes of data.test; got "
                         f"{len(files)}: name these volumes by data.test, or get a page without scores by data.test=[]")
    test = data.test or [recorded_volume(path) for path, _ in files]
    named = tuple(replace(volume, name=name_of_stored(path)) for volume, (path, _) in zip(test, files))
    return replace(settings, data=replace(data, test=named, folder=data.folder if data.test else "")), files


def recorded_volume(prediction: Path) -> VolumeFiles:
    """The image and the box that a prediction was made of; one without a record is shown without an image."""
    volume = (record.read(prediction) or {}).get("volume", {})
    kept = {name: volume[name] for name in ("image", "box") if volume.get(name) is not None}
    return config.from_table(VolumeFiles, {"image": str(prediction), **kept}, f"the record of {prediction}")


def check_there(settings: Settings, prediction: Path, stored: Mapping[str, Any] | None, wanted: Mapping[str, Any],
                what: str) -> None:
    """Refuses a prediction, finished or begun, whose record is not the wanted one."""
    differing = record.differences(stored, wanted, settings) if stored is not None else []
    if differing:
        raise InputError(f"{prediction} was {what} with other settings: {listed(differing)}. --again replaces it; "
                         "--results FOLDER writes to another folder and keeps both")


def why_decode(labels: Path, prediction: Path, wanted: Mapping[str, Any]) -> str | None:
    """Why labels that are there are not the wanted ones; None where they are."""
    made_by = record.read(labels, LABELS)
    if made_by is None:
        if record.read(prediction) is not None:
            return "they have no record of the prediction that they were made of"
        made_by = {"decode": open_volume(labels, LABELS).attrs.get("decode")}
    elif made_by["prediction"]["digest"] != wanted["prediction"]["digest"]:
        return "they were made of another prediction"
    if made_by.get("edits"):
        return "they hold edits, and labels without any are asked for"
    differing = decoded_otherwise(made_by, wanted["decode"])
    if not differing and made_by.get("classifier") != wanted.get("classifier"):
        return "the classifier in decode.learned.file is another one by now"
    return listed(differing) if differing else None


def decoded_otherwise(made_by: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """How the [decode] of labels differs from the wanted one."""
    return record.changed(record.with_defaults(made_by, {"decode": Decode})["decode"], wanted, "decode")


def check_source(made_by: Mapping[str, Any] | None, labels: Path, prediction: Path) -> None:
    """Refuses labels that were decoded from another prediction than the one beside them."""
    source = record.read(prediction) if made_by else None
    if source is not None and made_by["prediction"]["digest"] != record.digest(source):
        raise InputError(f"{labels} was decoded from another prediction than {prediction}: run infer.py, which decodes "
                         "the one that is there")


def check_scored(settings: Settings, number: int, labels: Path | None, prediction: Path,
                 again: bool = False) -> tuple[list[str], dict[str, Any]]:
    """What is scored, in words and as a table; results of another prediction, volume or truth are refused.

    again: another truth than the recorded one is taken.
    """
    test = settings.data.test[number]
    lines, made_by = [], record.read(labels, LABELS) if labels is not None else None
    predicted = is_there(prediction)
    source = record.read(prediction) if predicted else None
    if made_by is not None and predicted:
        check_source(made_by, labels, prediction)
    if source is None and made_by is not None and "settings" in made_by["prediction"]:
        source = made_by["prediction"]
    for path, found in ((prediction if predicted else None, source), (labels, made_by)):
        if path is not None and found is None:
            lines.append(f"{path} has no record of what made it: an older version or another program wrote it")
    if source is not None:
        check_volume(settings, number, source["volume"])
        lines.append(f"predicted by {record.told_weights(source['weights'])}, "
                     f"{record.told_arithmetic(source['arithmetic'])}")
        wanted = record.asked(settings)
        made_with = record.with_defaults(source["settings"], record.SETTINGS)
        differing = record.changed({name: made_with.get(name) for name in wanted}, wanted)
        if differing:
            lines.append(f"the prediction was made with other settings than those given here: {listed(differing)}")
    if made_by is not None:
        edits = made_by.get("edits")
        held = f", and {edits['count']} edits ({edits['digest'][:12]}) are held" if edits else ""
        lines.append(f"decoded by {record.told_decode(made_by['decode'])}{held}")
        differing = decoded_otherwise(made_by, config.to_table(settings.decode))
        if differing:
            lines.append(f"the labels were made with other settings than those given here: {listed(differing)}")
        elif made_by.get("classifier") != record.of_classifier(settings.decode).get("classifier"):
            lines.append("the labels were made with another classifier than the one in decode.learned.file")
        if made_by.get("truth") and test.label is not None and not again:
            check_truth(made_by["truth"], located(settings.data.folder, test.label), labels)
    table = {"weights": source and source["weights"], "settings": source and source["settings"],
             "arithmetic": source and source["arithmetic"], "volume": source and source["volume"],
             "decode": made_by and made_by["decode"], "classifier": made_by and made_by.get("classifier"),
             "truth": record.of_truth(settings, number)}
    return lines, table


def check_volume(settings: Settings, number: int, recorded: Mapping[str, Any]) -> None:
    """Refuses results of another volume than the one that the settings name."""
    test = settings.data.test[number]
    image, name = located(settings.data.folder, test.image), result_names(settings.data)[number]
    if not is_there(image):
        if image != recorded["image"]:
            raise InputError(f"the results of {name} are of {recorded['image']}, but data.test names {image}, which is "
                             "not there")
        return
    wanted = record.of_volume(settings, test)
    if not record.same_volume(recorded, wanted):
        raise InputError(f"the results of {name} are of {record.told_volume(recorded)}, but data.test names "
                         f"{record.told_volume(wanted)}: run infer.py for it, or name the folder of its results by "
                         "--results")


def check_truth(recorded: Mapping[str, Any], label: str, labels: Path) -> None:
    """Refuses labels that were made for another truth than the one that the settings name."""
    if is_there(label) and not record.same_truth(recorded, label):
        raise InputError(f"{labels} was made for the truth {recorded['label']}, but data.test names {label}, whose "
                         "voxels differ: evaluate.py --again scores by the truth that is named now")


def check_shown(made_by: Mapping[str, Any], scores: Mapping[str, Any] | None, name: str) -> None:
    """Refuses stored scores of other weights, settings or truth than those of the results that stand there now."""
    scored = (scores or {}).get("made_by")
    if not scored:
        return  # nothing is scored, or it was by a version without records
    differing = []
    if scored.get("weights") and made_by["weights"] and scored["weights"]["digest"] != made_by["weights"]["digest"]:
        differing.append(f"the weights were {record.told_weights(scored['weights'])}, are "
                         f"{record.told_weights(made_by['weights'])}")
    was, now = (record.with_defaults(table, {"decode": Decode}) for table in (scored, made_by))
    for key in ("arithmetic", "decode", "classifier"):
        differing += record.changed(was.get(key), now.get(key), key)
    was, now = (record.with_defaults(table.get("settings") or {}, record.SETTINGS) for table in (scored, made_by))
    differing += record.changed(was, now, "settings")
    truth = made_by["truth"]
    if scored.get("truth") and truth and scored["truth"]["content"] != truth["content"]:
        differing.append(f"the truth {truth['label']} has other voxels")
    if differing:
        raise InputError(f"the stored scores of {name} are not of the results that stand there now: "
                         f"{listed(differing)}. Run evaluate.py again")
