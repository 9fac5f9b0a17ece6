import pytest

from emcore.errors import InputError
from emcore.segment.statistics import Statistic, parse_statistic


@pytest.mark.parametrize("name, score", [
    ("mean", Statistic("mean")), ("affmean", Statistic("mean")), ("mean_affinity", Statistic("mean")),
    ("max", Statistic("max")), ("min", Statistic("min")),
    ("aff85_his256", Statistic("quantile", 85, 256)), ("aff85", Statistic("quantile", 85)),
    ("aff50_his0", Statistic("quantile", 50)),
    ("aff85_his256_ran255", Statistic("quantile", 85, 256)), ("aff85_his256_all", Statistic("quantile", 85, 256, True)),
    ("hist_quantile", Statistic("quantile", 50, 256)), ("hist_quantile_false", Statistic("quantile", 50, 256, True)),
    ("OneMinus<MeanAffinity<RegionGraphType, ScoreValue>>", Statistic("mean")),
    ("OneMinus<HistogramQuantileAffinity<RegionGraphType, 85, ScoreValue, 256>>", Statistic("quantile", 85, 256)),
    ("OneMinus<HistogramQuantileAffinity<RegionGraphType,85,ScoreValue,256,false>>",
     Statistic("quantile", 85, 256, True)),
    ("OneMinus<QuantileAffinity<RegionGraphType, 30, ScoreValue>>", Statistic("quantile", 30)),
])
def test_the_names_of_waterz_and_pytc_mean_what_they_mean_there(name, score):
    assert parse_statistic(name) == score
    assert parse_statistic(score) is score


@pytest.mark.parametrize("name, reason", [
    ("max10", "mean of the largest values.*not reducible"),
    ("OneMinus<MeanMaxKAffinity<RegionGraphType, 10, ScoreValue>>", "not reducible"),
    ("ContactArea<RegionGraphType>", "grows with the contact"),
    ("Multiply<MinSize<RegionGraphType>>", "no statistic of affinities"),
    ("median", "unknown statistic 'median'; there are mean, max, min"),
    ("aff101_his256", "0 to 100 percent"), ("aff50_his70000", "at most 65536 bins"),
    ("aff50_his64_all", "needs 256 bins"),
    ("OneMinus<QuantileAffinity<RegionGraphType,30,ScoreValue,false>>", "256 bins"),
])
def test_other_scores_are_refused_with_the_reason(name, reason):
    with pytest.raises(InputError, match=reason):
        parse_statistic(name)
