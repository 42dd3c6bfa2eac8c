"""Attention maps as one HTML page that opens offline."""
