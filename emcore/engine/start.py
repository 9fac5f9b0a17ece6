"""What has to be there before a run does any work."""

from pathlib import Path

from emcore.errors import InputError
from emcore.settings import Settings


def check_start(settings: Settings, recipe: Path) -> None:
    """Refuses a run whose starting weights are not there, and says how to make them or how to begin without them."""
    path = Path(settings.train.start_from)
    if not settings.train.start_from or path.is_file():
        return
    before = recipe.parent / f"{path.parent.parent.name}.toml"  # outputs/NAME/checkpoints/step_N.pt
    made = f"`python train.py --cfg {before}` makes it" if before.is_file() else "the run that writes it comes first"
    raise InputError(f"there is no file {path}, whose weights this run starts from: {made}; to begin with random "
                     'weights instead add `train.start_from=""`')
