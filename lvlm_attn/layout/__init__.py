"""What every position of a prompt is: image grids, and `PromptLayout`."""
