"""Wrong answers to the exercises of the chapter that compares everything. The names are those of its notebook."""

# ruff: noqa: E731, F821


def tail(pairs, win, level, seen):
    return sum(comb(pairs, w) * win**w * (1 - win) ** (pairs - w) for w in range(pairs + 1) if seen(w))


def chance_to_be_seen__one_sided(pairs, win, level=0.05):
    seen = lambda w: 2 * w > pairs and mcnemar(w, pairs - w) / 2 <= level
    return tail(pairs, win, level, seen)


def chance_to_be_seen__losses_count_too(pairs, win, level=0.05):
    return tail(pairs, win, level, lambda w: mcnemar(w, pairs - w) <= level)


def chance_to_be_seen__level_fixed(pairs, win, level=0.05):
    return chance_to_be_seen_solved(pairs, win)


def chance_to_be_seen__more_than_half(pairs, win, level=0.05):
    return tail(pairs, win, level, lambda w: 2 * w > pairs)


def chance_to_be_seen__all_won(pairs, win, level=0.05):
    return win**pairs


def chance_to_be_seen__without_the_coefficients(pairs, win, level=0.05):
    seen = [w for w in range(pairs // 2 + 1, pairs + 1) if mcnemar(w, pairs - w) <= level]
    return sum(win**w * (1 - win) ** (pairs - w) for w in seen)


def mean_ranks__smallest_first(scores):
    return rankdata(scores, axis=1).mean(0)


def mean_ranks__over_all_scores(scores):
    return rankdata(-scores).reshape(scores.shape).mean(0)


def mean_ranks__ties_by_place(scores):
    return rankdata(-scores, axis=1, method="ordinal").mean(0)


def mean_ranks__ties_share_the_best(scores):
    return rankdata(-scores, axis=1, method="min").mean(0)


def mean_ranks__ranks_of_the_means(scores):
    return rankdata(-scores.mean(0))


def mean_ranks__from_zero(scores):
    return mean_ranks_solved(scores) - 1


def mean_ranks__down_the_columns(scores):
    return rankdata(-scores, axis=0).mean(0)


def mean_ranks__argsort(scores):
    return (np.argsort(-scores, axis=1) + 1).mean(0)


def missing_class_bound__not_halved(k):
    return 2 * missing_class_bound_solved(k)


def missing_class_bound__natural_logarithm(k):
    return missing_class_bound_solved(k) * np.log(2)


def missing_class_bound__root(k):
    return missing_class_bound_solved(k) ** 0.5


def missing_class_bound__target_not_scaled(k):
    return js_distance_squared(all_ten, np.where(np.arange(10) < k, 0.1, 1e-12)) / 2


def missing_class_bound__share_of_missing(k):
    return (10 - k) / 20


def missing_class_bound__exchanged_classes(k):
    return missing_class_bound_solved(11 - k)
