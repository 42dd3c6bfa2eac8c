"""Hallucination benchmarks: building questions, generating answers, scoring them and comparing runs.

Each benchmark is one small file that offers the two methods of :class:`lvlm_attn.evals.core.benchmark.Benchmark`;
the runner knows nothing about POPE or CHAIR. Nothing here imports torch until a model answers.
"""
