"""Speed and memory of layers and losses against plain baselines: ``python -m benchmarks``."""
