"""What the page of doubts lists, shows and asks again, and which of its answers can be held together."""

import numpy as np

from bench.proofreading import agreeing
from emcore.decode.labels import decode
from emcore.report import doubts as command
from emcore.settings.decode import AffinityDecode
from emcore.volumes import create_volume, open_volume
from tests.test_doubts import components


def test_as_many_doubts_are_listed_as_are_asked_for(tmp_path):
    affs = np.random.default_rng(3).random((3, 3, 7, 8), np.float32)
    with create_volume(f"{tmp_path}/a_prediction.h5", affs.shape, affs.dtype, (30, 8, 8), None,
                       {"offsets": (-np.eye(3, dtype=int)).tolist()}) as out:
        out[...] = affs
    settings = AffinityDecode(low=0.1, high=0.95, threshold=0.4, remove_size=4)
    labels = decode(open_volume(tmp_path / "a_prediction.h5"), settings, tmp_path / "a_labels.h5")
    every = command.list_doubts(labels, 1000)
    assert every.total == len(every.rows) > 5
    few = command.list_doubts(labels, 5)
    assert few.rows == every.rows[:5]
    assert few.places[-1].one == every.places[4].one
    assert few.total > 5


def test_pictures_of_values_that_are_no_numbers_are_made_without_a_warning(recwarn):
    values = np.linspace(0, 1, 1000, dtype=np.float32).reshape(10, 10, 10)
    plain = command.grey(values)
    values[0, 0, :3], values[9, 9, 9] = (-np.inf, np.nan, np.nan), np.inf
    found = command.grey(values)
    assert np.abs(found.astype(int) - plain).max() <= 1
    assert (command.grey(np.full((2, 2, 2), np.nan)) == 0).all()
    assert not recwarn.list


def test_a_yes_is_asked_again_until_chance_and_answers_are_sure():
    for chance in (0.001, 0.03, 0.1, 0.13, 0.3, 0.5, 0.56, 0.9, 0.95):
        times, odds = command.times_asked(chance), chance / (1 - chance)
        assert odds * 9**times >= 99 or times == 4
        assert times == 1 or odds * 9**(times - 1) < 99
    assert [command.times_asked(chance) for chance in (0.0, 1.0)] == [4, 1]


def test_yeses_that_contradict_those_before_them_are_left_out():
    random = np.random.default_rng(0)
    for _ in range(40):
        pairs, split = random.integers(1, 8, (14, 2)), random.random(14) < 0.5
        kept = []
        for pair, apart in zip(pairs.tolist(), split.tolist()):
            tried = [*kept, (pair, apart)]
            groups = components([one for one, held in tried if not held], 8)
            if all(groups[one] != groups[other] for (one, other), held in tried if held):
                kept = tried
        joined, parted = agreeing(pairs, split)
        assert joined.tolist() == [pair for pair, apart in kept if not apart]
        assert parted.tolist() == [pair for pair, apart in kept if apart]
