"""Runs the speed benchmark: ``python -m benchmark.speed``, from the folder ``examples``."""

from benchmark.console import run_command
from benchmark.speed.command import speed

if __name__ == "__main__":
    run_command(speed)
