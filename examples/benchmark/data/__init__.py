"""The data of a benchmark: loaded and split, and converted from the files that their authors publish."""

from benchmark.data.loading import DataSize, LoadedData, load_data, load_stated

__all__ = ["DataSize", "LoadedData", "load_data", "load_stated"]
