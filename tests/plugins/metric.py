"""One more column of the figure: the share of tokens that were drafts."""

import rsdbench


def drafted(sample):
    """A weighted sum is of the sample and of each resample of its prompts, [1 + resamples]."""
    return 1 - sample.sum("blocks") / sample.sum("new_tokens")


rsdbench.register_metric(
    rsdbench.Metric(name="drafted", label="drafted", phase="quality", relative=False, formula=drafted)
)
