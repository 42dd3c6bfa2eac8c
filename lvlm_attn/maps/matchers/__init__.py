"""Which parts of an image a prompt is about: the matchers of AGLA.

A matcher is any callable `(image, prompt) -> (relevance, similarity)`: relevance of shape (height, width), of the
image or of a coarser grid over all of it, and a similarity of at most 1.
"""
