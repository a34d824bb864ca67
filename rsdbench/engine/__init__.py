"""The batched decoding engine: draft trees, the cache, the models and the block loop."""
