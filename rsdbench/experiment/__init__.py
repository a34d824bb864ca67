"""Tasks, cells, records and metrics."""
