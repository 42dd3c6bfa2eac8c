"""CHAIR: object hallucination in captions."""
