"""Datasets, prompts and scores."""
