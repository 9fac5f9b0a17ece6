"""YAML configs of PyTorch Connectomics become TOML with the pinned values; what cannot be carried is told."""

import copy
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from emcore import config
from emcore.errors import InputError, installation
from emcore.prediction.streaming import Job
from emcore.segment import polarity_instances
from emcore.settings import Settings
from emcore.settings.channels import channels_of
from emcore.systems.pytc.config import import_config, main
from emcore.systems.pytc.yaml_files import read_chain

pytest.importorskip("yaml")
ROOT = Path(__file__).resolve().parent.parent
YAML = ROOT / "tests" / "yaml"


def carried(folder, text):
    """What comes of a config beside the profiles, as in a checkout."""
    shutil.copytree(YAML / "profiles", folder / "profiles", dirs_exist_ok=True)
    (folder / "own.yaml").write_text(text if "_base_" in text else f"_base_: profiles/all.yaml\n{text}")
    return import_config(folder / "own.yaml")


def test_the_cleft_recipe_comes_out_with_the_pinned_values():
    found, notes, left = import_config(YAML / "clefts.yaml")
    assert (found.name, found.seed, found.data.patch, found.data.pad) == ("clefts", 7, (18, 256, 256), (0, 32, 32))
    assert [v.label for v in found.data.train] == [f"datasets/corrected/syn_{c}.h5" for c in "ABC"]
    assert (found.data.reject_below, found.data.reject_probability) == (1000, 0.95)
    assert found.model.rsunet.width == (32, 64, 96, 128, 160)  # what is documented, not what that code built
    assert (found.model.rsunet.norm, found.model.rsunet.act, found.model.rsunet.depth_2d) == ("batch", "elu", 1)
    assert [(term.kind, term.weight) for term in found.loss.terms] == [("bce", 1.0), ("dice", 1.0)]
    assert found.loss.terms[1].smooth == 1e-5
    assert (found.train.steps, found.train.precision, found.train.batch) == (150_000, "bf16", 4)
    assert (found.train.schedule.kind, found.train.schedule.least, found.train.schedule.every) == ("cosine", 1e-5, 1)
    assert (found.train.ema.decay, found.train.ema.warmup) == (0.999, 500)
    assert (found.train.save.best, found.train.save.steps) == (3, 12_800)
    assert found.augment.flip.probability == (0.0, 0.5, 0.5)
    assert (found.augment.blur.sections, found.augment.blur.kernel) == (2, 11)
    assert found.augment.cut_noise.probability == 0
    assert (found.infer.views.flips, found.infer.blend, found.infer.pad) == ((0, 1, 2), "bump", (0, 32, 32))
    assert found.evaluate.scores == ("clefts", "jaccard")
    assert any("[32, 64, 96, 128, 160]" in note and "[18, 36, 48, 64, 80]" in note for note in notes)
    assert left == ["monitor.logging.images.max_images = 8", "monitor.logging.images.num_slices = 9",
                    "test.save_path = outputs/clefts/results"]


def test_the_neuron_recipe_comes_out_with_the_pinned_values():
    found, notes, left = import_config(YAML / "neurons.yaml")
    offsets = found.target[0].offsets
    assert offsets[:6] == ((0, 0, -1), (0, -1, 0), (-1, 0, 0), (-2, 0, 0), (-3, 0, 0), (-4, 0, 0))
    assert (offsets[8], offsets[11], found.labels.erosion, found.model.out_channels) == (
        (0, 0, -27), (0, -27, 0), 1, 12)
    assert (found.model.rsunet.width, found.model.rsunet.norm, found.model.rsunet.groups) == (
        (18, 36, 48, 64, 80), "group", 4)
    schedule = found.train.schedule
    assert (schedule.kind, schedule.warmup, schedule.every, schedule.warmup_factor, schedule.least) == (
        "warmup_cosine", 3000, 1000, 1e-5, 1e-6)
    assert (found.train.steps, found.train.optimizer.lr, found.train.ema.decay) == (100_000, 3e-4, 0.0)
    assert set(found.augment.exclusive) == {"misalignment", "missing_section", "blur", "missing_part"}
    assert (found.augment.misalignment.displacement, found.augment.missing_section.sections) == (17, (0, 5))
    assert (found.infer.select, found.infer.batch, found.infer.pad) == ((0, 1, 2), 16, (8, 128, 128))
    assert (found.infer.views.flips, found.decode.link) == ((), None)  # views are off, branch_merge is off
    decode = found.decode
    assert (decode.statistic, decode.threshold, decode.low, decode.high) == ("aff85_his256", 0.5, 0.1, 0.999)
    assert (decode.dust_size, decode.dust_affinity, decode.remove_size) == (800, 0.3, 600)
    assert (found.evaluate.scores, found.evaluate.convention) == (("rand",), "snemi3d")
    assert found.data.test[0].image == "datasets/SNEMI/test-input.tif"
    assert (found.tune.volumes, found.tune.space.low) == ("test", {"min": 0.0, "max": 0.5, "step": 0.1})
    assert found.tune.space.statistic[-1] == "aff15_his256"
    assert left == ["tune.n_trials = 25"]  # every point is tried
    assert any("multiply it" in note for note in notes)


@pytest.mark.parametrize("name, recipe", [("clefts", "cremi/cremi_clefts"), ("neurons", "snemi/snemi_neurons")])
def test_an_imported_recipe_equals_ours_of_the_same_name(name, recipe):
    found = import_config(YAML / f"{name}.yaml")[0]
    ours = config.load(Settings, ROOT / "configs" / f"{recipe}.toml")
    for table in ("augment", "labels", "target", "model", "train"):
        assert getattr(found, table) == getattr(ours, table), table
    # ours stores all channels, so that another selection needs no new prediction
    assert found.infer == replace(ours.infer, select=found.infer.select)
    if name == "neurons":
        assert (found.infer.select, ours.infer.select) == ((0, 1, 2), ())
        assert found.tune == ours.tune
    if name == "neurons":
        ours = replace(ours, decode=replace(ours.decode, link=None))  # which that file names, and keeps from acting
    assert found.decode == ours.decode


def test_the_command_writes_toml_that_says_what_was_left(tmp_path, capsys):
    assert main([str(YAML / "clefts.yaml"), "-o", str(tmp_path / "out.toml")]) == 0
    captured = capsys.readouterr()
    assert captured.out == f"{tmp_path / 'out.toml'}: 3 settings not carried, told at its end\n"
    assert "not carried: test.save_path = outputs/clefts/results\n" in captured.err
    text = (tmp_path / "out.toml").read_text()
    assert "patch = [18, 256, 256]  # z, y, x, voxels of one sample" in text
    assert text.splitlines()[-1] == "# not carried: test.save_path = outputs/clefts/results"
    assert config.load(Settings, tmp_path / "out.toml") == import_config(YAML / "clefts.yaml")[0]


def test_a_profile_whose_file_is_absent_is_told_and_one_that_no_file_has_is_noted(tmp_path):
    (tmp_path / "alone.yaml").write_text((YAML / "neurons.yaml").read_text())
    with pytest.raises(InputError, match=r"alone\.yaml chooses pipeline_profile = aff12, which no file read here "
                                         r"has, and profiles/all\.yaml, which _base_ names, is not there: import"):
        import_config(tmp_path / "alone.yaml")
    (tmp_path / "alone.yaml").write_text("_base_: gone.yaml\ndecoding: {steps: [{template: decoding_bcd}]}")
    with pytest.raises(InputError, match=r"chooses template = decoding_bcd, .* gone\.yaml, which _base_ names"):
        import_config(tmp_path / "alone.yaml")
    assert "system.profile = none is in none of the files that _base_ names" in carried(
        tmp_path, "system: {profile: none}\ndecoding: {steps: [{template: other}]}")[1]
    notes = carried(tmp_path, "_base_: gone.yaml\nsystem: {num_gpus: 1}")[1]
    assert "gone.yaml, which _base_ names, is not there" in notes


def test_heads_other_targets_and_banis_offsets_are_carried(tmp_path):
    found, notes, left = carried(tmp_path, """
default:
  pipeline_profile: aff9_sdt
  model:
    arch: {profile: mednext_s}
    heads:
      near: {out_channels: 3, num_blocks: 1}
      sdt: {out_channels: 1, num_blocks: 1}
    loss:
      losses:
      - {function: PerChannelBCEWithLogitsLoss, pred_head: near, target_slice: "0:3", kwargs: {auto_pos_weight: true}}
      - {function: SmoothL1Loss, pred_head: sdt, target_slice: "3:4", pos_weight: 1.0, kwargs: {tanh: true}}
      - {function: MalisLoss, weight: 0.5}
      loss_balancing: {strategy: uncertainty}
  data:
    split_enabled: true
    split_train_range: [0.0, 0.8]
    split_val_range: [0.8, 1.0]
    split_axis: 0
    label_transform:
      targets:
      - {name: affinity, kwargs: {offsets: ["0-0-1", "0-1-0", "1-0-0"], affinity_mode: banis}}
      - {name: skeleton_aware_edt, kwargs: {alpha: 0.8, bg_value: -1.0}}
      - {name: flow}
    dataloader: {patch_size: [32, 160, 160]}
  inference: {test_time_augmentation: {ensemble_mode: min}}
  decoding:
    steps:
    - {name: decode_waterz, kwargs: {thresholds: [0.3, 0.4], branch_merge: true, iou_threshold: 0.6}}
train:
  data: {train: {image: a.h5, label: b.h5, label_aux: s.h5, label_aux_type: skeleton}}
""")
    assert (found.model.name, found.model.mednext.size, found.model.mednext.heads) == (
        "mednext", "S", (("near", 3), ("sdt", 1)))
    assert found.target[0].offsets == ((0, 0, 1), (0, 1, 0), (1, 0, 0))
    assert (found.target[1].kind, found.target[1].alpha, len(found.target)) == ("skeleton_distance", 0.8, 2)
    assert [(term.kind, term.head, term.target) for term in found.loss.terms] == [
        ("per_channel_bce", "near", "0:3"), ("smooth_l1", "sdt", "3:4")]
    assert found.loss.terms[1].tanh
    assert found.loss.uncertainty
    assert (found.data.train_part, found.data.validation_part) == ((0.0, 0.8), (0.8, 1.0))
    assert found.data.validation == found.data.train
    assert found.data.train[0].skeleton == "s.h5"
    assert [(a.channels, a.kind) for a in found.infer.activation] == [("0:-1", "sigmoid"), ("-1:", "tanh")]
    assert (found.decode.threshold, found.decode.link.iou) == (0.4, 0.6)
    assert "the loss MalisLoss is not here" in notes
    assert "the target flow is not here" in notes
    assert {"model.loss.losses.2.function = MalisLoss", "model.loss.losses.2.weight = 0.5"} <= set(left)


@pytest.mark.parametrize("kwargs, relabel, told", [
    ("{mode: 2d}", True, False), ("{mode: 3d, relabel: true}", True, False), ("{relabel: false}", False, True)])
def test_instance_distances_take_pieces_as_there_or_say_that_they_do_not(tmp_path, kwargs, relabel, told):
    target = f"{{name: instance_edt, kwargs: {kwargs}}}"
    found, notes, left = carried(tmp_path, f"data: {{label_transform: {{targets: [{target}]}}}}")
    assert (found.target[0].kind, found.target[0].relabel, left) == ("instance_distance", relabel, [])
    assert any("relabel = false fills the holes" in note for note in notes) == told
    profile = carried(tmp_path, "pipeline_profile: bcd")[0]
    assert (profile.target[2].in_plane, profile.target[2].relabel) == (True, True)


def test_the_contour_decoder_has_the_defaults_of_the_function_there_or_of_the_template(tmp_path):
    step = "decoding: {steps: [{name: decode_instance_binary_contour_distance}]}"
    decode = carried(tmp_path, step)[0].decode
    assert (decode.contour.distance, decode.contour.min_seed, decode.remove_size) == ((0.5, 0.0), 32, 0)
    decode = carried(tmp_path, "decoding: {steps: [{template: decoding_bcd}]}")[0].decode
    assert (decode.contour.distance, decode.contour.min_seed, decode.remove_size) == ((0.5, -0.5), 5, 30)


def test_a_search_on_volumes_of_its_own_gets_them_as_validation(tmp_path):
    found, _, left = carried(tmp_path, """
train: {data: {train: {image: a.h5, label: b.h5}}}
test: {data: {test: {image: c.h5}}}
tune: {profile: tune_waterz, data: {val: {image: d.h5, label: e.h5}}}
""")
    assert (found.tune.volumes, found.data.validation[0].image, left) == ("validation", "d.h5", [])
    assert found.tune.space.threshold == {"min": 0.1, "max": 0.9, "step": 0.05}


def test_far_affinities_chosen_for_decoding_are_named_by_axis(tmp_path):
    text = (YAML / "neurons.yaml").read_text().replace("[0, 1, 2]", "[6, 9, 4]").replace(
        "[7, 8, 127, 128, 127, 128]", "[5, 8, 125, 128, 125, 128]")
    found, notes, _ = carried(tmp_path, text)
    assert (found.infer.select, found.decode.channels) == ((6, 9, 4), (2, 1, 0))  # z, y, x among what is stored
    assert not any("crop_pad" in note for note in notes)
    assert any("crop_pad" in note for note in carried(tmp_path, text.replace("[5, 8,", "[1, 8,"))[1])


def test_polarity_and_the_layout_of_2025_are_carried(tmp_path):
    found, _, left = carried(tmp_path, """
experiment_name: old
system: {training: {batch_size: 2, num_gpus: 1}}
model:
  arch: {type: rsunet}
  out_channels: 3
  filters: [16, 32, 64]
  rsunet_norm: batch
  rsunet_down_factors: [[1, 2, 2], [1, 2, 2]]
  losses:
  - {function: WeightedBCEWithLogitsLoss, pred_slice: [0, '${model.out_channels}'], pos_weight: auto}
data:
  train_image: [a.h5]
  train_label: [b.h5]
  patch_size: [8, 64, 64]
  iter_num_per_epoch: 100
  label_transform: {targets: [{name: polarity, kwargs: {exclusive: false}}]}
optimization: {max_epochs: 3, scheduler: {name: CosineAnnealingLR, t_max: 300, interval: step}}
decoding: {steps: [{name: polarity2instance, kwargs: {exclusive: false, thres: 0.6, dilate_sz: 5}}]}
test: {data: {test_image: [c.h5], test_resolution: [30, 8, 8]}}
inference: {test_time_augmentation: {channel_activations: [[0, 3, sigmoid]]}}
""")
    assert (found.data.train[0].image, found.data.patch, found.train.steps) == ("a.h5", (8, 64, 64), 300)
    assert (found.model.rsunet.width, found.model.rsunet.down) == ((16, 32, 64), ((1, 2, 2), (1, 2, 2)))
    assert (found.loss.terms[0].prediction, found.loss.terms[0].positive_weight) == ("0:3", "auto")
    assert (found.target[0].kind, found.decode.kind, found.decode.threshold) == ("polarity", "polarity", 0.6)
    assert (found.data.test[0].image, found.data.resolution) == ("c.h5", (30.0, 8.0, 8.0))
    assert found.infer.activation[0].channels == "0:3"
    assert left == ["decoding.steps.0.kwargs.dilate_sz = 5"]


@pytest.mark.parametrize("exclusive", [False, True])
def test_the_three_changes_that_make_a_recipe_of_clefts_one_of_polarity_give_one_that_decodes(tmp_path, exclusive):
    import yaml
    tree = yaml.safe_load((YAML / "clefts.yaml").read_text())
    tree["model"] |= {"out_channels": 3}
    tree["model"]["loss"]["losses"] = [
        {"function": "WeightedCE", "pred_slice": "0:3", "target_slice": "0:1"} if exclusive else
        {"function": "WeightedBCEWithLogitsLoss", "weight": 1.0, "kwargs": {"reduction": "mean"}, "pred_slice": "0:3",
         "target_slice": "0:3"}]
    tree["decoding"] = {"steps": [{"name": "polarity2instance", "kwargs": {"exclusive": exclusive}}]}
    found, notes, left = carried(tmp_path, yaml.safe_dump(tree))
    assert [(target.kind, target.exclusive) for target in found.target] == [("polarity", exclusive)]
    assert (found.data.background, found.data.ignore) == ((), ())  # which are marks of CREMI's files
    assert (found.decode.kind, found.decode.exclusive, found.evaluate.scores) == ("polarity", exclusive, ("synapses",))
    told = " ".join(notes)
    assert "the target is polarity" in told
    assert "leave out channels 1, 2" in told
    assert "synapses are scored in place of clefts and jaccard" in told
    assert not any("activation" in line or "metrics" in line for line in left)
    # logits of a synapse from its channels to its two ids
    classes = np.zeros((4, 40, 40), int)
    classes[:, 5:15, 5:10], classes[:, 5:15, 10:17] = 1, 2
    kinds = [classes == 0, classes == 1, classes == 2] if exclusive else [classes == 1, classes == 2, classes > 0]
    logits = torch.from_numpy(np.where(kinds, 6, -6).astype(np.float32))[None]
    job = SimpleNamespace(activations=[(channels_of(a.channels, 3, "x"), a.kind) for a in found.infer.activation])
    values = Job.activate(job, logits)[0].numpy()
    labels = polarity_instances(values, found.decode.threshold, found.decode.small, exclusive=exclusive)
    assert np.unique(labels, return_counts=True)[1].tolist() == [6400 - 480, 200, 280]


def test_channels_without_an_activation_are_told(tmp_path):
    text = ("model: {out_channels: 3}\ninference: {test_time_augmentation: {channel_activations: "
            "[{channels: '1:2', activation: tanh}]}}")
    assert "channel_activations leave out channels 0, 2, which stay logits" in carried(tmp_path, text)[1]
    text = text.replace("inference: {", "inference: {select_channel: [1], ")
    assert not any("logits" in note for note in carried(tmp_path, text)[1])


@pytest.mark.parametrize("files, sentence", [
    ({"own.yaml": "_base_: own.yaml"}, "own.yaml includes itself through _base_: own.yaml -> own.yaml"),
    ({"own.yaml": "_base_: b.yaml", "b.yaml": "_base_: own.yaml"}, "own.yaml -> b.yaml -> own.yaml"),
    ({"own.yaml": "a: !!python/object/apply:os.system [echo]"}, "is no valid YAML at line 1"),
    ({"own.yaml": "a: [1"}, "is no valid YAML at line 1"),
    ({"own.yaml": "- 1"}, "must hold a table of settings; it holds a list"),
    ({"own.yaml": "a: &a [x, *a]"}, "nested too deep"),
    ({"own.yaml": "\n".join([f"k{i}: &k{i} [{', '.join([f'*k{i - 1}' if i else '1'] * 9)}]" for i in range(9)])},
     "too many values"),
    ({"own.yaml": "x: " + "y" * (1 << 20)}, "larger than 1 MiB"),
    ({"own.yaml": "data: {dataloader: {patch_size: big}}"}, "data.dataloader.patch_size must be a list; got 'big'"),
    ({"own.yaml": "data: {dataloader: {patch_size: [1, 2]}}"}, "cannot be carried over: data.patch needs 3 values"),
    ({"own.yaml": "data: {train: {image: [a, b], label: [c]}}"}, "has 2 images and 1 files as label"),
    ({"own.yaml": "\n".join(["_base_:", *(f"- b{i}.yaml" for i in range(60))]),
      **{f"b{i}.yaml": "" for i in range(60)}}, "more than 50 files"),
])
def test_hostile_or_wrong_files_are_refused_in_one_sentence(tmp_path, files, sentence):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=r"^[^\n]*$") as error:
        import_config(tmp_path / "own.yaml")
    assert sentence in str(error.value)


@pytest.mark.parametrize("name", ["clefts", "neurons"])
@pytest.mark.parametrize("every", [pytest.param(29, marks=pytest.mark.slow), pytest.param(1, marks=pytest.mark.long)])
def test_values_of_any_kind_are_carried_or_refused(tmp_path, name, every):
    import yaml
    tree = read_chain(YAML / f"{name}.yaml")[0]
    paths = list(nodes(tree, ()))
    outcomes = {"carried": 0, "refused": 0}
    for number, path in list(enumerate(paths))[::every]:
        for odd in ODD[number % len(ODD)::len(ODD)]:
            changed = copy.deepcopy(tree)
            parent = changed
            for step in path[:-1]:
                parent = parent[step]
            parent[path[-1]] = odd
            (tmp_path / "own.yaml").write_text(yaml.safe_dump(changed))
            try:
                import_config(tmp_path / "own.yaml")
                outcomes["carried"] += 1
            except InputError:
                outcomes["refused"] += 1
    assert min(outcomes.values()) > 20 / every


ODD = [None, 5, "x", [], {}, [[1]], True, -1.5, {"a": 1}, [{"a": {"b": 2}}], "0:${a.b}", 10**30]


def nodes(value, path):
    for step, item in value.items() if isinstance(value, dict) else enumerate(value):
        yield (*path, step)
        if isinstance(item, dict | list):
            yield from nodes(item, (*path, step))


def test_what_a_config_says_cannot_leave_its_comment(tmp_path, capsys):
    (tmp_path / "own.yaml").write_text('extra: "x\\nname = \\"evil\\""\nexperiment_name: "a\\nb"')
    assert main([str(tmp_path / "own.yaml"), "-o", str(tmp_path / "out.toml")]) == 0
    assert config.load(Settings, tmp_path / "out.toml").name == "a\nb"
    assert '# not carried: extra = x name = "evil"' in (tmp_path / "out.toml").read_text()


def test_without_pyyaml_one_sentence_names_the_extra():
    code = ("import sys; sys.modules['yaml'] = None; sys.argv = ['emcore', 'import-config', 'tests/yaml/clefts.yaml']\n"
            "from emcore.__main__ import main; sys.exit(main())")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2
    assert done.stderr == ("error: reading YAML configs needs the extra yaml, which is not installed here: "
                           f"{installation('yaml')}\n")
