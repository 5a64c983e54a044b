"""Tokenised pairs as they lie in an Arrow file that is mapped into memory."""

from typing import Any

import datasets
import numpy as np
from datasets import Dataset


class TokenizedPairs(Dataset):
    """A dataset with `row_id`, `input_ids`, `labels`, `source_length` and `target_length`.

    Batches of rows are fetched from its file without the detour by Python lists: ids are int64 arrays there, and the
    lengths are left out.
    """

    _views: "_Views | None" = None

    def __getitems__(self, keys: list[int]) -> list[dict[str, Any]]:
        if self._indices is not None or self._format_type is not None:
            return super().__getitems__(keys)
        if self._views is None:
            self._views = _Views(self.data)
        return self._views.rows(np.asarray(keys, np.int64))

    def __getstate__(self) -> dict[str, Any]:
        # The views would be copied out of the mapped file.
        return {**self.__dict__, "_views": None}


class _Views:
    """Arrays that look into the file of `TokenizedPairs`, one for each record batch and column."""

    def __init__(self, table: datasets.table.Table):
        batches = [batch for batch in table.to_batches() if batch.num_rows]
        self.starts = np.cumsum([0, *(batch.num_rows for batch in batches)])
        self.row_ids = [batch.column("row_id").to_numpy() for batch in batches]
        self.sides = []
        for name in ("input_ids", "labels"):
            # `values` and `offsets` are those of the whole array, even where a batch is a slice of one.
            columns = [batch.column(name) for batch in batches]
            offsets = np.concatenate([np.zeros(0, np.int32), *(column.offsets.to_numpy() for column in columns)])
            self.sides.append((offsets, [column.values.to_numpy() for column in columns]))

    def rows(self, keys: np.ndarray) -> list[dict[str, Any]]:
        """The rows of these numbers, (rows,)."""
        if len(keys) and not 0 <= keys.min() <= keys.max() < self.starts[-1]:
            raise IndexError(f"rows {keys.min()} to {keys.max()} of {self.starts[-1]}")
        batches = self.starts.searchsorted(keys, "right") - 1
        within = (keys - self.starts[batches]).tolist()
        columns = []
        for offsets, values in self.sides:
            # Each batch has one offset more than rows.
            begins, ends = offsets[keys + batches].tolist(), offsets[keys + batches + 1].tolist()
            columns.append(
                [
                    values[batch][begin:end].astype(np.int64)
                    for batch, begin, end in zip(batches.tolist(), begins, ends, strict=True)
                ]
            )
        row_ids = [int(self.row_ids[batch][row]) for batch, row in zip(batches.tolist(), within, strict=True)]
        return [
            {"row_id": row_id, "input_ids": source, "labels": target}
            for row_id, source, target in zip(row_ids, *columns, strict=True)
        ]


def pair_lengths(pairs: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Source and target lengths in tokens of all pairs, (pairs,) int32 each, without a loop over rows."""
    if pairs._indices is not None:
        pairs = pairs.flatten_indices()
    source, target = (pairs.data.column(name).to_numpy() for name in ("source_length", "target_length"))
    return source, target
