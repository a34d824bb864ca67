"""What the processes of `tests.commands` have imported before they are forked."""

import os
from importlib import import_module

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"  # a process that has run threads must not be forked; these have not

for name in ("figure", "merge", "plan", "run", "status", "table"):
    import_module(f"rsdbench.cli.{name}")
for name in ("rsdbench.runner.run", "matplotlib.pyplot", "transformers.models.opt.modeling_opt"):
    import_module(name)
