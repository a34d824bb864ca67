"""The algorithm of a block: draft a tree, one target forward, verify, commit."""
