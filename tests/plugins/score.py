"""A score of one's own for a dataset of one's own: the share of the reference's words that the answer has."""

import rsdbench


def recall(text, reference):
    """Statistics of one answer, which are summed over answers: here one number from 0 to 1."""
    wanted, given = set(reference.lower().split()), set(text.lower().split())
    return (len(wanted & given) / max(1, len(wanted)),)


def in_percent(sums, count):
    """The score of `count` answers from the sums [1] of their statistics."""
    return 100 * float(sums[0]) / count


rsdbench.register_score("word_recall", rsdbench.Score(statistics=recall, corpus=in_percent))
