"""Views of a prompt that are decoded beside it: one batch, one cache, one chosen token for all."""
