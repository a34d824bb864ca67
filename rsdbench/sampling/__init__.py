"""Next-token laws and Gumbel sampling: tensors in, tensors out."""
