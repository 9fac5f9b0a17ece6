"""Names of runs and volumes become folders and files: those that would lead elsewhere are refused by every command."""

import runpy
from pathlib import Path

import pytest

from emcore import report
from emcore.errors import InputError

ROOT = Path(__file__).resolve().parent.parent
BAD = ["../../x", "/tmp/x", "a/b", "a\\\\b", "", ".", "..", "a\\u0000b", "ä" * 100]
RUN = """
name = "{run}"
[[data.test]]
image = "raw.h5"
name = "{volume}"
"""


@pytest.mark.parametrize("which", ["run", "volume"])
@pytest.mark.parametrize("name", BAD)
def test_a_name_that_is_no_plain_file_name_is_refused_by_every_command(tmp_path, monkeypatch, name, which):
    monkeypatch.chdir(tmp_path)
    text = RUN.format(**{"run": "good", "volume": "good", which: name})
    Path("run.toml").write_text(text, encoding="utf-8")
    Path("outputs/good/results_step=1").mkdir(parents=True)
    Path("outputs/good/config.toml").write_text(text, encoding="utf-8")
    before = sorted(tmp_path.rglob("*"))
    wanted = rf"the name of a {which} must be (a plain file name, without|at most 180 bytes long)"
    for script, arguments in (("train", ()), ("train", ("--smoke",)), ("infer", ()), ("evaluate", ())):
        with pytest.raises(InputError, match=wanted):
            runpy.run_path(str(ROOT / f"{script}.py"))["main"](["--cfg", "run.toml", *arguments])
    with pytest.raises(InputError, match=wanted):
        report.main(["outputs/good"])
    assert sorted(tmp_path.rglob("*")) == before
