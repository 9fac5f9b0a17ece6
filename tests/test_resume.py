"""A run goes on after an upgrade of emcore: settings that are newer than its config have their defaults."""

from dataclasses import replace

import pytest

from emcore import config
from emcore.engine.resume import check_same_run
from emcore.errors import InputError
from emcore.settings import Settings
from emcore.settings.model import RSUNetModel, RSUNetSizes


def test_a_run_older_than_a_setting_goes_on_unless_the_setting_is_used(tmp_path):
    settings = Settings("run")
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "step_000000005.pt").write_bytes(b"x")
    text = config.to_toml(settings)
    older = "\n".join(line for line in text.splitlines() if not line.startswith("fold = "))
    assert len(older) < len(text) - 10
    (tmp_path / "config.toml").write_text(older + "\n")
    check_same_run(tmp_path, settings)
    other = replace(settings, model=RSUNetModel(rsunet=RSUNetSizes(fold=(1, 2, 2))))
    with pytest.raises(InputError, match=r"model.rsunet.fold was \[1, 1, 1\], is \[1, 2, 2\]"):
        check_same_run(tmp_path, other)
    (tmp_path / "config.toml").write_text(text.replace("fold = ", "folds = "))
    with pytest.raises(InputError, match=r"config.toml, the config of the run so far, .*folds"):
        check_same_run(tmp_path, settings)
