"""Models: where they are, whether they fit, how they are loaded and checked."""
