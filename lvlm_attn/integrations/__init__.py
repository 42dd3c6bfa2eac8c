"""Other people's harnesses: this project's methods inside lmms-eval and VLMEvalKit."""
