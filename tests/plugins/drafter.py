"""A drafter without a model: tokens as often as the sequence has them already."""

import torch

import rsdbench
from rsdbench.decoding.drafter import Drafts


class Unigrams:
    """Draws from the frequencies of the sequence's own tokens, each of the vocabulary's having been seen a bit."""

    name = "unigrams"
    vocabulary = None  # any target's
    parameters = 0
    certain = False

    def draft(self, sequences, shape, vocabulary, generator):
        """For trees whose siblings are distinct and whose parents are known: tokens and valid [B, N], log_q."""
        counts = torch.full((len(sequences), vocabulary), 0.01)
        for row, sequence in enumerate(sequences):
            counts[row] += torch.bincount(torch.tensor(sequence), minlength=vocabulary)
        log_q = counts.log().log_softmax(1)
        tokens = torch.zeros(len(sequences), shape.budget, dtype=torch.long)
        for parent in dict.fromkeys(shape.parents):
            nodes = [node for node, own in enumerate(shape.parents) if own == parent]
            tokens[:, nodes] = log_q.exp().multinomial(len(nodes), generator=generator)  # without replacement, in order
        valid = torch.ones_like(tokens, dtype=torch.bool)
        return Drafts(tokens, valid, log_q.unsqueeze(1).expand(-1, 1 + shape.expanded, -1))


rsdbench.register_drafter("unigrams", rsdbench.DrafterKind(Unigrams, certain=False))
