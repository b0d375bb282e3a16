"""Load and split the data of a benchmark."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from benchmark.cells import DataSource, Protocol, data_digest
from cramer_peft.errors import DataError
from cramer_peft.recsys.data.catalogue import Catalogue
from cramer_peft.recsys.data.datasets import dataset_folder, load_dataset
from cramer_peft.recsys.data.own_data import Columns, OwnData, load_own_data
from cramer_peft.recsys.data.splits import Split, leave_one_out, temporal_split


@dataclass(frozen=True)
class DataSize:
    """The sizes that a cell's cost grows with.

    Attributes:
        users: Test users.
        items: Items of the catalogue.
        interactions: Interactions of all users in training.
    """

    users: int
    items: int
    interactions: int


@dataclass(frozen=True)
class LoadedData:
    """A data set split for one protocol.

    Attributes:
        catalogue: The items.
        split: Histories and targets.
        digest: Digest of the files.
    """

    catalogue: Catalogue
    split: Split
    digest: str

    @property
    def size(self) -> DataSize:
        """The sizes that a cell's cost grows with."""
        return DataSize(len(self.split.test_target), len(self.catalogue), sum(map(len, self.split.train)))


@lru_cache(maxsize=3)
def load_data(source: DataSource, protocol: Protocol) -> LoadedData:
    """Load and split a data set; the last three are remembered.

    Raises:
        DataError: If there is no such data, or it cannot be split by this protocol.
        DownloadError: If it cannot be downloaded.
    """
    temporal = protocol == "temporal"
    catalogue, interactions = load_dataset(
        source.data,
        title_column=source.title_column,
        attribute_column=source.attribute_column,
        attribute_separator=source.attribute_separator,
        min_interactions=1 if temporal else 3,
    )
    split = temporal_split(interactions) if temporal else leave_one_out(interactions)
    return LoadedData(catalogue, split, data_digest(dataset_folder(source.data)))


@lru_cache(maxsize=3)
def load_stated(source: DataSource, protocol: Protocol) -> OwnData:
    """Load and split a data set with the requests that its field ``request`` states; the last three are remembered.

    Raises:
        DataError: If there is no such data or no such field, or it cannot be split by this protocol.
    """
    columns = Columns(source.title_column, source.attribute_column, source.attribute_separator)
    data = load_own_data(source.data, protocol, columns, attributes=False)
    if not data.states_requests:
        raise DataError(
            f"{source.name}: its .inter file has no column 'request', so nobody states a request there. Give "
            "other data, or train on another source: requests attributes, catalogue or history."
        )
    return data
