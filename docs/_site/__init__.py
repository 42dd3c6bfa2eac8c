"""What `make docs` makes beside the pages that are written by hand."""
