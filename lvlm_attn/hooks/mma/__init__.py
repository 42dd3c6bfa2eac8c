"""Modality-mutual attention: the method, and its token groups."""
