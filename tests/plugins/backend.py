"""A backend: the eager one, with a count of its blocks."""

import rsdbench
from rsdbench.backends.eager import EagerBackend, EagerEngine


class CountingBackend(EagerBackend):
    """See `rsdbench.decoding.backend.Backend`, of which any method may be another."""

    name = "counting"
    blocks = 0

    def commit(self, verified):
        """Once a block."""
        CountingBackend.blocks += 1
        return super().commit(verified)


class CountingEngine(EagerEngine):
    """Makes one for each batch."""

    name = "counting"

    def backend(self, job):
        """For a batch of prompts."""
        return CountingBackend(job, self)


rsdbench.register_backend("counting", CountingEngine)
