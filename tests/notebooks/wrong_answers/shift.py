"""Wrong answers to the exercises of the chapter on domain shift. The names are those of its notebook."""

# ruff: noqa: F821


def mistakes(source, target, **options):
    both, domain = np.concatenate([source, target]), np.repeat([1, 0], [len(source), len(target)])
    return LogisticRegression(max_iter=1000, **options).fit(both, domain).predict(both) != domain, domain


def d_a_in_sample__domains_weighed_by_rows(source, target):
    return 2 * (1 - 2 * mistakes(source, target)[0].mean())


def d_a_in_sample__held_out(source, target):
    return proxy_a_distance(source, target).mean


def d_a_in_sample__of_the_accuracy(source, target):
    return 2 * mistakes(source, target, class_weight="balanced")[0].mean()


def d_a_in_sample__not_doubled(source, target):
    return d_a_in_sample_solved(source, target) / 2


def d_a_in_sample__error_once(source, target):
    return 2 * (1 - mistakes(source, target, class_weight="balanced")[0].mean())


def expand__nothing(x):
    return x


def expand__constant(x):
    return np.hstack([x, np.ones((len(x), 1))])


def expand__sum(x):
    return np.hstack([x, x.sum(1, keepdims=True), x[:, :1] - x[:, 1:]])


def expand__standardised_by_all_rows(x):
    return np.hstack([x, ((x - x.mean(0)) / x.std(0)) ** 2])


def expand__order_of_the_rows(x):
    return np.hstack([x, np.arange(len(x))[:, None]])


def expand__product_with_the_number_of_rows(x):
    return np.hstack([x, len(x) * x**2])


def confusion_matrix(y, answers, k):
    return np.array([[np.mean((answers == i) & (y == j)) for j in range(k)] for i in range(k)])


def shares_of(labels, k):
    return np.bincount(labels, minlength=k) / len(labels)


def estimate_shares__answers_counted(y, answers, answers_t, k):
    return shares_of(answers_t, k)


def estimate_shares__weights_not_shares(y, answers, answers_t, k):
    return np.linalg.solve(confusion_matrix(y, answers, k), shares_of(answers_t, k))


def estimate_shares__transposed(y, answers, answers_t, k):
    w = np.linalg.solve(confusion_matrix(y, answers, k).T, shares_of(answers_t, k))
    return w * shares_of(y, k)


def estimate_shares__of_the_source(y, answers, answers_t, k):
    return shares_of(y, k)


def estimate_shares__times_the_shares_of_the_answers(y, answers, answers_t, k):
    w = np.linalg.solve(confusion_matrix(y, answers, k), shares_of(answers_t, k))
    return w * shares_of(answers, k)


def estimate_shares__sum_one(y, answers, answers_t, k):
    w = np.linalg.solve(confusion_matrix(y, answers, k), shares_of(answers_t, k))
    return w / w.sum()


def estimate_shares__counts(y, answers, answers_t, k):
    return len(answers_t) * estimate_shares_solved(y, answers, answers_t, k)


def estimate_shares__ratio_of_counts(y, answers, answers_t, k):
    return shares_of(answers_t, k) / shares_of(answers, k) * shares_of(y, k)
