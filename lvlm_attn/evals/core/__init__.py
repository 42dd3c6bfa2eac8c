"""What all benchmarks share: the runner, run folders, parsers, statistics, reports."""
