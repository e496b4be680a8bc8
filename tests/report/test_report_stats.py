"""Intervals and tests against numbers worked out by hand, and against scipy where it is
installed."""

import math

import pytest

from sttm_lmms.report.stats import clustered_error, clustered_interval, mcnemar_exact, wilson


def test_clustered_error_by_hand():
    # mean 0.6; deviations by video: a +0.8, b -1.2, c +0.4; squares sum to 2.24; times 3/2; root /
    # 5.
    error = clustered_error([1, 1, 0, 0, 1], ["a", "a", "b", "b", "c"])
    assert error == pytest.approx(math.sqrt(1.5 * 2.24) / 5)
    assert error == pytest.approx(0.366606, abs=1e-6)


def test_clusters_of_one_give_the_usual_standard_error():
    scores = [1, 0, 1, 1, 0, 1, 1]
    mean = sum(scores) / 7
    usual = math.sqrt(sum((s - mean) ** 2 for s in scores) / 6 / 7)
    assert clustered_error(scores, range(7)) == pytest.approx(usual)


def test_questions_of_one_video_do_not_count_as_independent():
    apart = clustered_error([1, 1, 1, 0, 0, 0], range(6))
    together = clustered_error([1, 1, 1, 0, 0, 0], ["a"] * 3 + ["b"] * 3)
    assert together > 1.5 * apart


@pytest.mark.parametrize(("scores", "clusters"), [([], []), ([1.0, 0.0], ["a", "a"])])
def test_one_cluster_tells_nothing_about_the_spread(scores, clusters):
    assert clustered_error(scores, clusters) is None
    assert clustered_interval(scores, clusters) is None


def test_every_score_needs_a_cluster():
    with pytest.raises(ValueError, match="2 scores but 1 cluster"):
        clustered_error([1, 0], ["a"])


def test_wilson_of_the_textbook():
    assert wilson(0.5, 10) == pytest.approx((0.2366, 0.7634), abs=1e-4)


def test_interval_uses_the_effective_sample_size():
    scores, videos = [1, 1, 0, 0, 1], ["a", "a", "b", "b", "c"]
    effective = 0.6 * 0.4 / clustered_error(scores, videos) ** 2
    assert clustered_interval(scores, videos) == pytest.approx(wilson(0.6, effective))


def test_all_right_is_not_certainty():
    low, high = clustered_interval([1.0] * 12, [n // 4 for n in range(12)])
    assert (low, high) == pytest.approx(wilson(1.0, 3))
    assert low < 0.5
    assert high == 1.0


def test_videos_that_all_score_alike_do_not_shrink_the_interval_to_a_point():
    # One right and one wrong answer for each video: the clustered error is 0.
    assert clustered_interval([1, 0] * 4, [n // 2 for n in range(8)]) == pytest.approx(wilson(0.5, 8))


@pytest.mark.parametrize(("lost", "won", "p"), [(0, 0, 1.0), (5, 5, 1.0), (0, 5, 0.0625), (1, 9, 22 / 1024)])
def test_mcnemar_by_hand(lost, won, p):
    assert mcnemar_exact(lost, won) == pytest.approx(p)
    assert mcnemar_exact(won, lost) == pytest.approx(p)


def test_mcnemar_against_scipy():
    stats = pytest.importorskip("scipy.stats")
    for lost in range(0, 40, 3):
        for won in range(0, 40, 3):
            if lost + won:
                expected = stats.binomtest(lost, lost + won, 0.5).pvalue
                assert mcnemar_exact(lost, won) == pytest.approx(expected)


def test_mcnemar_refuses_negative_counts():
    with pytest.raises(ValueError, match="lost=-1"):
        mcnemar_exact(-1, 2)
