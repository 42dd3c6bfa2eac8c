"""Training of the CrossLMM adapter of the bundled toy."""
