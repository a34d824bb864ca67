"""Next-token distributions and Gumbel sampling: tensors in, tensors out."""
