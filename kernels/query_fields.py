"""Rows of the three tables that the tile passes, the losses and the schedules exchange, a column a query. No torch.

A pass over an M x N tile of logits z leaves the sums of every query; positives and negatives are kept apart so that the
loss is the difference of their log-sum-exps and loses no digits when it is near zero. From the sums come the terms,
which the backward pass needs, and the statistics, which the schedules are given.
"""

# Sums: logits z, candidates split into positives and negatives.
NEGATIVE_MAX = 0  # max z over the negatives, -inf without any
NEGATIVE_SUM = 1  # sum of exp(z - NEGATIVE_MAX)
NEGATIVE_WEIGHTED = 2  # sum of z exp(z - NEGATIVE_MAX)
MINIMUM = 3  # min z over all candidates
POSITIVE_COUNT = 4
POSITIVE_TOTAL = 5  # sum of z over the positives
POSITIVE_MAX = 6  # max z over the positives, -inf without any
POSITIVE_SUM = 7  # sum of exp(z - POSITIVE_MAX)
POSITIVE_WEIGHTED = 8  # sum of z exp(z - POSITIVE_MAX)
QUERY_SUMS = 9

# Terms.
SHIFT = 0  # d value / dz is exp(z - SHIFT) on a negative
POSITIVE_SHIFT = 1  # log-sum-exp that a positive is compared with: of all candidates, or ("ignore") of the negatives
SHARE = 2  # what the negatives' probabilities add up to: minus it is the exact gradient of a lone positive
INVERSE_COUNT = 3  # 1 / number of positives; 0 without any
QUERY_TERMS = 4

# Statistics: fields of `varalign.schedules.direction_stats.DirectionStats`, which says what they are.
STATISTICS = ("lse", "positive_mean", "positive_max", "negative_max", "minimum", "expected", "variance")
