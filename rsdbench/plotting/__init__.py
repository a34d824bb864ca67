"""The grid of charts."""
