"""AMBER's generative part: which objects of a description are in the picture."""
