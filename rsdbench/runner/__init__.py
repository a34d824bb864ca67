"""From a configuration to records: cells, plans, runs, leases, what is done and what is not."""
