"""What CrossLMM is made of: pooled image tokens, runs of un-pooled ones, adapters, and their training on the toy."""
