import itertools

import numpy as np
import pandas as pd
import pytest
from scipy import stats as scipy_stats
from statsmodels.stats.multitest import multipletests

from analysis import stats

# Student (1908), the soporifics data: hours of sleep gained by ten patients with each of two drugs.
DRUG_1 = np.array([0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0])
DRUG_2 = np.array([1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4])
# Darwin's maize, crossed minus self-fertilised, in eighths of an inch (Fisher 1935, Design of Experiments, 21).
DARWIN = np.array([49, -67, 8, 16, 6, 23, 28, 41, 14, 29, 56, 24, 75, 60, -48])
# Hollander and Wolfe (1973, p. 140): three ways of rounding first base, 22 players; R's example of friedman.test.
BASES = np.fromstring(
    """5.40 5.50 5.55  5.85 5.70 5.75  5.20 5.60 5.50  5.55 5.50 5.40  5.90 5.85 5.70  5.45 5.55 5.60  5.40 5.40 5.35
    5.45 5.50 5.35  5.25 5.15 5.00  5.85 5.80 5.70  5.25 5.20 5.10  5.65 5.55 5.45  5.60 5.35 5.45  5.05 5.00 4.95
    5.50 5.50 5.40  5.45 5.55 5.50  5.55 5.55 5.35  5.45 5.50 5.55  5.50 5.45 5.25  5.65 5.60 5.40  5.70 5.65 5.55
    6.30 6.30 6.25""",
    sep=" ",
).reshape(22, 3)
# Demšar (2006, JMLR 7, Table 6): ranks of C4.5, +m, +cf, +m+cf on 14 data sets.
TREES = np.fromstring(
    """4 3 2 1  1 2 3 4  4 1 2 3  4 1 3 2  4 2 3 1  1 2.5 4 2.5  3 2 4 1  2.5 2.5 4 1  4 3 2 1  2.5 2.5 2.5 2.5
    4 2.5 1 2.5  3 2 4 1  4 1 2 3  3 1 4 2""",
    sep=" ",
).reshape(14, 4)


def test_standard_error_is_s_over_root_n_with_n_minus_1():
    values = stats.estimate([2, 4, 4, 4, 5, 5, 7, 9])  # squared deviations sum to 32
    assert values.n == 8
    assert values.mean == 5
    assert values.standard_error == pytest.approx(np.sqrt(32 / 7 / 8))


def test_interval_of_five_uses_the_tabulated_t_value():
    values = stats.estimate([1.0, 2.0, 3.0, 4.0, 5.0])
    assert values.high - values.mean == pytest.approx(2.776 * np.sqrt(2.5 / 5), rel=1e-3)
    assert values.mean - values.low == pytest.approx(values.high - values.mean)


def test_t_interval_of_five_normal_values_covers_95_percent():
    random = np.random.default_rng(0)
    covered = [low <= 3 <= high for *_, low, high in map(stats.estimate, random.normal(3, 2, (4000, 5)))]
    assert np.mean(covered) == pytest.approx(0.95, abs=0.012)  # 3.5 standard errors of the simulation


def test_one_value_has_a_mean_and_no_spread():
    values = stats.estimate([0.5])
    assert values[:2] == (1, 0.5)
    assert np.isnan(values[2:]).all()
    assert np.isnan(stats.paired_t([0.1]).p)
    assert np.isnan(stats.sign_flip([0.1]).p)
    assert np.isnan(stats.paired_t([]).p)
    assert np.isnan(stats.sign_flip([]).p)


def test_a_value_that_is_not_finite_is_not_dropped():
    assert np.isnan(stats.estimate([0.1, np.nan, 0.2]).mean)
    assert stats.estimate([0.1, np.inf, 0.2]).mean == np.inf
    assert np.isnan(stats.estimate([0.1, np.inf, 0.2]).standard_error)
    assert np.isnan(stats.paired_t([0.1, np.nan]).p)
    assert np.isnan(stats.sign_flip([0.1, np.nan]).p)


def test_summary_keeps_groups_in_their_order_and_groups_none_as_well():
    frame = pd.DataFrame({"lambda": pd.Series([None, None, 1e-6, 1e-6], dtype=object), "loss": [1.0, 3.0, 5.0, 5.0]})
    summary = stats.summarise(frame, ["lambda"], "loss")
    assert summary["mean"].tolist() == [2, 5]
    assert summary["standard_error"].tolist() == [1, 0]
    assert summary["n"].tolist() == [2, 2]


def test_paired_t_gives_the_published_result_on_students_sleep_data():
    test = stats.paired_t(DRUG_2 - DRUG_1)  # as printed by R: t.test(extra ~ group, data = sleep, paired = TRUE)
    assert test.n == 10
    assert test.difference == pytest.approx(1.58)
    assert test.p == pytest.approx(0.002833, abs=5e-7)
    assert (test.low, test.high) == pytest.approx((0.7001142, 2.4598858), abs=5e-8)
    assert test.effect_size == pytest.approx(4.0621 / np.sqrt(10), abs=1e-4)  # t = d_z sqrt(n)


@pytest.mark.parametrize("n", [2, 3, 5, 30])
def test_paired_t_agrees_with_scipy(n):
    random = np.random.default_rng(n)
    a, b = random.normal(0, 1, n), random.normal(0.4, 1, n)
    theirs, ours = scipy_stats.ttest_rel(a, b), stats.paired_t(a - b)
    assert ours.p == pytest.approx(theirs.pvalue)
    assert (ours.low, ours.high) == pytest.approx(tuple(theirs.confidence_interval()))


def test_no_difference_at_all_has_p_1():
    assert stats.paired_t([0.0] * 5) == (5, 0, 0, 0, 0, 1)
    assert stats.sign_flip([0.0] * 5) == (5, 1, 1, True)


def test_equal_differences_leave_the_t_test_undefined_and_the_exact_test_at_its_least():
    differences = np.array([270, 241, 212]) / 300 - np.array([269, 240, 211]) / 300  # equal, but for rounding
    assert np.ptp(differences) > 0
    assert np.isnan(stats.paired_t(differences)[2:]).all()
    assert stats.sign_flip(differences).p == 0.25


def test_sign_flip_gives_fishers_count_on_darwins_maize():
    test = stats.sign_flip(DARWIN)
    assert test.exact
    assert test.p == 1726 / 2**15


@pytest.mark.parametrize("n", [2, 5, 9])
def test_sign_flip_agrees_with_brute_force_and_with_scipy(n):
    differences = np.random.default_rng(n).normal(0.3, 1, n)
    sums = [np.dot(signs, differences) for signs in itertools.product([-1, 1], repeat=n)]
    expected = np.mean(np.abs(sums) >= abs(differences.sum()) - 1e-12)
    test = stats.sign_flip(differences)
    assert test.p == expected
    assert test.smallest_p == 2 / 2**n
    theirs = scipy_stats.permutation_test((differences,), np.sum, permutation_type="samples", n_resamples=np.inf)
    assert test.p == pytest.approx(theirs.pvalue)


def test_five_pairs_cannot_go_below_one_sixteenth():
    assert stats.sign_flip([1, 2, 3, 4, 500]) == (5, 0.0625, 0.0625, True)


def test_zero_differences_raise_the_smallest_p():
    assert stats.sign_flip([0, 0, 1, 2, 3]) == (5, 0.25, 0.25, True)


def test_sums_that_differ_by_rounding_only_are_ties():
    # In tenths 3 - 2 - 1 = 0, so that every sign vector reaches the observed sum; in floating point it is 5e-17.
    assert sum([0.3, -0.2, -0.1]) != 0
    assert stats.sign_flip([0.3, -0.2, -0.1]).p == 1
    assert stats.sign_flip([0.1, 0.2, -0.3]).p == 1


def test_pairs_of_all_tasks_are_blocks_of_one_test():
    of_tasks = np.random.default_rng(3).normal(0.5, 1, (3, 4))  # tasks x seeds
    assert stats.sign_flip(of_tasks) == stats.sign_flip(of_tasks.ravel())
    assert stats.sign_flip(of_tasks).n == 12


def test_twenty_pairs_are_enumerated_and_more_are_drawn():
    random = np.random.default_rng(1)
    assert stats.sign_flip(random.normal(0.5, 1, 20)).smallest_p == 2 / 2**20
    differences = random.normal(0.3, 1, 24)
    drawn = stats.sign_flip(differences)
    assert not drawn.exact
    assert drawn == stats.sign_flip(differences)  # seeded
    assert drawn.smallest_p == 1 / 200_001
    half = np.array(list(itertools.product([-1, 1], repeat=12))) @ differences.reshape(2, 12).T
    sums = np.add.outer(half[:, 0], half[:, 1])  # all 2^24 signs
    expected = np.mean(np.abs(sums) >= abs(differences.sum()) - 1e-12)
    assert drawn.p == pytest.approx(expected, abs=4 * np.sqrt(expected / 200_000))


def test_holm_gives_the_worked_example():
    # p.adjust(c(0.01, 0.04, 0.03, 0.005), "holm") in R: 4 x 0.005, 3 x 0.01, 2 x 0.03, and 0.04 raised to that 0.06.
    assert stats.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_holm_stays_at_1_and_leaves_out_tests_that_were_not_made():
    assert stats.holm([0.9, np.nan, 0.02, 0.6]) == pytest.approx([1, np.nan, 0.06, 1], nan_ok=True)
    assert np.isnan(stats.holm([np.nan, np.nan])).all()


def test_holm_rejects_as_the_step_down_procedure_does():
    random = np.random.default_rng(5)
    for p in random.uniform(0, 0.1, (200, 6)):
        rejected = np.zeros(6, bool)
        for place, which in enumerate(np.argsort(p)):  # Holm (1979): stop at the first that is not rejected
            if p[which] > 0.05 / (6 - place):
                break
            rejected[which] = True
        assert ((stats.holm(p) <= 0.05) == rejected).all()


def test_holm_agrees_with_statsmodels():
    p = np.random.default_rng(6).uniform(0, 0.3, 9)
    assert stats.holm(p) == pytest.approx(multipletests(p, method="holm")[1])


def test_smoothing_is_the_weighted_mean_of_the_formula():
    values = pd.Series([3.0, 1.0, 4.0, 1.0, 5.0])
    weights = (1 - 2 / (3 + 1)) ** np.arange(5)[::-1]
    assert stats.smooth(values, span=3).iloc[-1] == pytest.approx(np.sum(weights * values) / weights.sum())
    assert stats.smooth(values, span=1).tolist() == values.tolist()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_smoothing_does_not_hide_a_run_that_blew_up(bad):
    assert stats.smooth(pd.Series([1.0, bad, 1.0]), span=3).isna().tolist() == [False, True, True]


def test_mean_curve_at_equal_x_is_mean_and_standard_error_at_each():
    curve = stats.mean_curve([pd.Series([1.0, 2.0], [32, 64]), pd.Series([3.0, 6.0], [32, 64])])
    assert curve.index.tolist() == [32, 64]
    assert curve["mean"].tolist() == [2, 4]
    assert curve["standard_error"].tolist() == pytest.approx([1, 2])


def test_mean_curve_interpolates_only_where_all_curves_are():
    curve = stats.mean_curve([pd.Series([0.0, 10.0], [0, 10]), pd.Series([0.0, 4.0, 8.0], [4, 8, 12])])
    assert curve.index.tolist() == [4, 8, 10]
    assert curve["mean"].tolist() == pytest.approx([2, 6, 8])


def test_mean_curve_of_one_run_has_no_standard_error_and_ends_with_a_run():
    assert stats.mean_curve([pd.Series([1.0], [1])])["standard_error"].isna().all()
    ended = stats.mean_curve([pd.Series([1.0, np.inf], [1, 2]), pd.Series([1.0, 1.0], [1, 2])])
    assert ended["mean"].tolist() == pytest.approx([1, np.nan], nan_ok=True)


def test_welch_gives_the_published_result_on_students_sleep_data():
    test = stats.welch(DRUG_1, DRUG_2)  # as printed by R: t.test(extra ~ group, data = sleep), group 1 minus 2
    assert test.n == (10, 10)
    assert test.p == pytest.approx(0.07939, abs=5e-6)
    assert (-test.high, -test.low) == pytest.approx((-3.3654832, 0.2054832), abs=5e-8)
    assert test.difference == pytest.approx(2.33 - 0.75)


def test_welch_is_undefined_without_two_values_an_arm_or_without_spread():
    for a, b in (([1.0], [1.0, 2.0]), ([], [1.0, 2.0]), ([1.0, np.nan], [1.0, 2.0]), ([0.1, 0.1], [0.3, 0.3])):
        assert np.isnan(stats.welch(a, b)[2:]).all()
    assert stats.welch([0.1, 0.1], [0.3, 0.3]).difference == pytest.approx(0.2)


def test_no_test_is_wrong_more_often_than_it_says_where_there_is_no_difference():
    random, simulations = np.random.default_rng(11), 2000
    pairs = random.normal(0, 1, (simulations, 5))
    skewed = random.exponential(1, (simulations, 8)) * random.choice([-1, 1], (simulations, 8))
    unequal = [(random.normal(0, 1, 4), random.normal(0, 5, 9)) for _ in range(simulations)]
    ranked = random.normal(0, 1, (simulations, 4, 3))
    bound = 0.05 + 3 * np.sqrt(0.05 * 0.95 / simulations)
    for p in (
        [stats.paired_t(d).p for d in pairs],
        [stats.sign_flip(d).p for d in skewed],
        [stats.welch(a, b).p for a, b in unequal],
        [stats.friedman(x).p for x in ranked[:400]],
    ):
        assert np.mean(np.array(p) <= 0.05) <= bound


def test_friedman_gives_the_published_result_on_rounding_first_base():
    test = stats.friedman(BASES)  # R: Friedman chi-squared = 11.143, df = 2, p-value = 0.003805
    assert test.statistic == pytest.approx(11.143, abs=5e-4)
    assert scipy_stats.chi2.sf(test.statistic, 2) == pytest.approx(0.003805, abs=5e-7)
    assert test.exact
    assert test.p == pytest.approx(0.003805, rel=0.3)  # the exact p that chi^2 approximates


def test_friedman_ranks_and_nemenyis_difference_are_those_of_demsars_example():
    test = stats.friedman(-TREES)
    assert test.ranks == pytest.approx([3.143, 2.000, 2.893, 1.964], abs=5e-4)
    means = test.ranks  # his 9.28 is without a correction for ties
    assert 12 * 14 / 20 * (np.sum(means**2) - 4 * 25 / 4) == pytest.approx(9.28, abs=0.01)
    # his critical differences: 1.25 at 0.05, 1.12 at 0.10; C4.5 and C4.5+m+cf differ by 1.18
    assert 0.05 < test.pairs[0, 3] < 0.10
    assert scipy_stats.studentized_range.sf(1.25 / np.sqrt(20 / (12 * 14)), 4, np.inf) == pytest.approx(0.05, abs=2e-3)
    assert (test.pairs == test.pairs.T).all()


@pytest.mark.parametrize("ties", [False, True])
def test_friedmans_exact_p_agrees_with_brute_force(ties):
    random = np.random.default_rng(2)
    values = random.integers(0, 3, (4, 3)).astype(float) if ties else random.normal(0, 1, (4, 3))
    test = stats.friedman(values)
    arranged = (
        scipy_stats.friedmanchisquare(*np.array(rows).T).statistic
        for rows in itertools.product(*(list(itertools.permutations(row)) for row in values))
    )
    everything = np.array(list(arranged))
    assert test.statistic == pytest.approx(scipy_stats.friedmanchisquare(*values.T).statistic)
    assert test.p == pytest.approx(np.mean(everything >= test.statistic - 1e-9))
    assert test.smallest_p == pytest.approx(np.mean(everything >= everything.max() - 1e-9))


def test_friedmans_exact_p_is_the_tabulated_one():
    # Friedman (1937), three treatments: chi^2 = 8 with four blocks has 0.0046, 6.5 has 0.042; 6 with three has 0.028.
    ordered = np.array([[3.0, 2.0, 1.0]] * 4)
    assert stats.friedman(ordered).p == pytest.approx(0.0046, abs=5e-5)
    one_swapped = np.array([[3.0, 2.0, 1.0]] * 3 + [[3.0, 1.0, 2.0]])
    assert stats.friedman(one_swapped).statistic == pytest.approx(6.5)
    assert stats.friedman(one_swapped).p == pytest.approx(0.042, abs=5e-4)
    assert stats.friedman(ordered[:3]).p == pytest.approx(0.028, abs=5e-4)
    assert stats.friedman(ordered).smallest_p == stats.friedman(ordered).p


def test_friedman_is_undefined_where_there_is_nothing_to_rank():
    for values in (np.ones((4, 3)), [[1.0, 2.0, np.nan]] * 4, [[1.0, 2.0, 3.0]], [[1.0, 2.0]] * 4):
        assert np.isnan(stats.friedman(values).p)


def test_a_paired_t_test_of_34_pairs_sees_half_a_standard_deviation():
    assert stats.detectable_effect(34) == pytest.approx(0.5, abs=0.006)  # G*Power's first example of a paired t-test
    assert np.isnan(stats.detectable([0.1]))
    assert np.isnan(stats.detectable([0.1, np.nan]))


def test_differences_without_a_spread_do_not_say_what_could_be_detected():
    for no_spread in ([0.0, 0.0, 0.0], [0.1, 0.1, 0.1]):
        assert np.isnan(stats.detectable(no_spread))


@pytest.mark.parametrize("n", [2, 5])
def test_what_is_said_to_be_detectable_is_found_four_times_of_five(n):
    effect = stats.detectable_effect(n)
    random = np.random.default_rng(n)
    found = [stats.paired_t(d).p <= 0.05 for d in random.normal(effect, 1, (3000, n))]
    assert np.mean(found) == pytest.approx(0.8, abs=3 * np.sqrt(0.16 / 3000))
    d = random.normal(0, 3, n)
    assert stats.detectable(d) == pytest.approx(effect * d.std(ddof=1))


def test_expected_best_of_k_is_the_mean_over_all_subsets():
    values = np.array([0.3, 0.9, 0.5, 0.5, 0.1])
    subsets = [[max(chosen) for chosen in itertools.combinations(values, k)] for k in range(1, 6)]
    assert stats.best_of(values) == pytest.approx([np.mean(best) for best in subsets])


def test_values_that_differ_in_their_rounding_only_share_a_rank():
    exact = np.array([[0.3, 0.3, 0.1], [0.5, 0.2, 0.2], [0.1, 0.4, 0.6]])
    rounded = exact.copy()
    rounded[0, 0], rounded[1, 2] = 0.1 + 0.2, 0.7 - 0.5
    assert (rounded != exact).sum() == 2
    assert stats.friedman(rounded).ranks == pytest.approx([(1.5 + 1 + 3) / 3, (1.5 + 2.5 + 2) / 3, (3 + 2.5 + 1) / 3])
    assert stats.friedman(rounded).p == stats.friedman(exact).p


def test_a_geometric_mean_has_the_interval_of_its_logarithms():
    factors = np.array([1.5, 2.0, 3.0])
    found, logarithms = stats.geometric(np.log(factors)), stats.estimate(np.log(factors))
    assert found.n == 3
    assert found.mean == pytest.approx(9 ** (1 / 3))
    assert np.log([found.low, found.high]) == pytest.approx([logarithms.low, logarithms.high])
    assert np.isnan(found.standard_error)
