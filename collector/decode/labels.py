"""Text columns under construction: codes into a dictionary of distinct texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from collector.decode.wire import Int32s
from collector.spans import LABEL


@dataclass(frozen=True, slots=True)
class Labels:
    """`dictionary[code]` by row, NULL where the code is -1; the dictionary's texts are distinct."""

    codes: Int32s
    dictionary: pa.StringArray

    @classmethod
    def of(cls, codes: Int32s, texts: Sequence[str | None]) -> Labels:
        """`texts[code]` by row; the texts may repeat, or be None for NULL."""
        distinct = {text: i for i, text in enumerate(text for text in dict.fromkeys(texts) if text is not None)}
        recode = np.array([-1 if text is None else distinct[text] for text in texts], np.int32)
        return cls(recode[codes], pa.array(list(distinct), pa.string()))

    @classmethod
    def encode(cls, texts: pa.StringArray) -> Labels:
        """Of texts without nulls."""
        encoded = texts.dictionary_encode()
        return cls(encoded.indices.to_numpy(), encoded.dictionary)

    def overlaid(self, rows: npt.NDArray[Any], texts: pa.StringArray) -> Labels:
        """The same with these texts at these rows, which ascend."""
        over = Labels.encode(texts)
        if len(rows) == len(self.codes):
            return over
        recode = pc.index_in(over.dictionary, self.dictionary).fill_null(-1).to_numpy().copy()
        new = recode < 0
        recode[new] = np.arange(len(self.dictionary), len(self.dictionary) + np.count_nonzero(new))
        codes = self.codes.copy()
        codes[rows] = recode[over.codes]
        return Labels(codes, pa.concat_arrays([self.dictionary, over.dictionary.filter(pa.array(new))]))

    def to_arrow(self) -> pa.DictionaryArray:
        """A LABEL column."""
        if not len(self.dictionary):
            return pa.nulls(len(self.codes), LABEL)
        missing = self.codes < 0
        indices = pa.array(self.codes, mask=missing if missing.any() else None)
        return pa.DictionaryArray.from_arrays(indices, self.dictionary, safe=False)


class LabelColumns:
    """Makes LABEL columns of a given length; those of one text share their memory."""

    def __init__(self, count: int) -> None:
        self._count = count

    @cached_property
    def _zeros(self) -> pa.Int32Array:
        return pa.array(np.zeros(self._count, np.int32))

    @cached_property
    def _nulls(self) -> pa.DictionaryArray:
        return pa.nulls(self._count, LABEL)

    def of(self, codes: Int32s, texts: Sequence[str | None]) -> pa.DictionaryArray:
        """`texts[code]` by row, as Labels.of."""
        distinct = list(dict.fromkeys(texts))
        if len(distinct) != 1:
            return Labels.of(codes, texts).to_arrow()
        if distinct[0] is None:
            return self._nulls
        return pa.DictionaryArray.from_arrays(self._zeros, pa.array(distinct, pa.string()), safe=False)
