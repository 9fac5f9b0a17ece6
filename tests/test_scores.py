import pytest

from emcore.errors import InputError
from emcore.segment.scores import Score, parse_score


@pytest.mark.parametrize("name, score", [
    ("mean", Score("mean")), ("affmean", Score("mean")), ("mean_affinity", Score("mean")),
    ("max", Score("max")), ("min", Score("min")),
    ("aff85_his256", Score("quantile", 85, 256)), ("aff85", Score("quantile", 85)),
    ("aff50_his0", Score("quantile", 50)),
    ("aff85_his256_ran255", Score("quantile", 85, 256)), ("aff85_his256_all", Score("quantile", 85, 256, True)),
    ("hist_quantile", Score("quantile", 50, 256)), ("hist_quantile_false", Score("quantile", 50, 256, True)),
    ("OneMinus<MeanAffinity<RegionGraphType, ScoreValue>>", Score("mean")),
    ("OneMinus<HistogramQuantileAffinity<RegionGraphType, 85, ScoreValue, 256>>", Score("quantile", 85, 256)),
    ("OneMinus<HistogramQuantileAffinity<RegionGraphType,85,ScoreValue,256,false>>", Score("quantile", 85, 256, True)),
    ("OneMinus<QuantileAffinity<RegionGraphType, 30, ScoreValue>>", Score("quantile", 30)),
])
def test_the_names_of_waterz_and_pytc_mean_what_they_mean_there(name, score):
    assert parse_score(name) == score
    assert parse_score(score) is score


@pytest.mark.parametrize("name, reason", [
    ("max10", "mean of the largest values.*not reducible"),
    ("OneMinus<MeanMaxKAffinity<RegionGraphType, 10, ScoreValue>>", "not reducible"),
    ("ContactArea<RegionGraphType>", "grows with the contact"),
    ("Multiply<MinSize<RegionGraphType>>", "no statistic of affinities"),
    ("median", "unknown score 'median'; there are mean, max, min"),
    ("aff101_his256", "0 to 100 percent"), ("aff50_his70000", "at most 65536 bins"),
    ("aff50_his64_all", "needs 256 bins"),
    ("OneMinus<QuantileAffinity<RegionGraphType,30,ScoreValue,false>>", "256 bins"),
])
def test_other_scores_are_refused_with_the_reason(name, reason):
    with pytest.raises(InputError, match=reason):
        parse_score(name)
