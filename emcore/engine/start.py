"""What has to be there before a run does any work."""

from pathlib import Path

from emcore.cards import checkpoint_file
from emcore.data.skeletons import skeleton_folder
from emcore.data.sources import missing_files
from emcore.errors import InputError
from emcore.settings import Settings


def check_start(settings: Settings, recipe: Path) -> None:
    """Refuses a run whose volumes or starting weights are not there, and says how to come by those weights."""
    missing = missing_files(settings.data, ("train", "validation"), skeleton_folder(settings))
    path = checkpoint_file(settings.train.start_from)
    if settings.train.start_from and not path.is_file():
        before = recipe.parent / f"{path.parent.parent.name}.toml"  # outputs/NAME/checkpoints/step_N.pt
        made = f"`python train.py --cfg {before}` makes it" if before.is_file() else (
            "the run that writes it comes first")
        missing.append(f"there is no file {path}, whose weights this run starts from: {made}; to begin with random "
                       'weights instead add `train.start_from=""`')
    if missing:
        raise InputError("; ".join(missing))
