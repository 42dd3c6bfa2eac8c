"""What a `with` block installs on a model: hooks, the attention registry, edits."""
