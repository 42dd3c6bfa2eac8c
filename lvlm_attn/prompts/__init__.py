"""What is asked of a model: requests, chat templates, markers, pixels and token rows."""
