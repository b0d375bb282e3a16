"""Runs the benchmark: ``python -m benchmark``, from the folder ``examples``."""

from benchmark.command import benchmark
from benchmark.console import run_command

if __name__ == "__main__":
    run_command(benchmark)
