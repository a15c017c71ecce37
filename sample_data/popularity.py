"""Which keys of a cache are asked for, and which of them it still holds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from sample_data.topology import KEY_EXPONENTS, KEYS_PER_CACHE, Ints, Topology

Floats = npt.NDArray[np.float64]


class Keys:
    """The caches of all tenants as arrays of shape (tenants, caches of the tenant with most)."""

    def __init__(self, topology: Topology) -> None:
        caches = [t.caches for t in topology.tenants]
        self.cache_count = np.array([len(c) for c in caches])
        self.item_bytes_median = padded([[c.item_bytes_median for c in cs] for cs in caches])
        self._key_class = padded([[c.key_class for c in cs] for cs in caches]).astype(np.int64)
        self._retention = padded([[c.retention_requests for c in cs] for cs in caches])
        ranks = np.arange(1, KEYS_PER_CACHE + 1)
        weights = np.stack([ranks**-e for e in KEY_EXPONENTS])
        self._popularity = weights / weights.sum(axis=1, keepdims=True)
        self._cdf = np.cumsum(self._popularity, axis=1)
        self.hit_ratio = padded([[self._mean_hits(c.key_class, c.retention_requests) for c in cs] for cs in caches])

    def _mean_hits(self, key_class: int, retention_requests: float) -> float:
        popularity = self._popularity[key_class]
        return float((popularity * -np.expm1(-popularity * retention_requests)).sum())

    def draw(self, rng: np.random.Generator, tenant: Ints, cache: Ints) -> Ints:
        """A key each, as its rank (0 is the most popular), by Zipf's law with the exponent of the cache."""
        uniform = rng.random(len(tenant))
        key_class = self._key_class[tenant, cache]
        ranks = np.zeros(len(tenant), dtype=np.int64)
        for index, exponent_cdf in enumerate(list(self._cdf)):
            mine = key_class == index
            ranks[mine] = np.searchsorted(exponent_cdf, uniform[mine], side="right")
        return np.minimum(ranks, KEYS_PER_CACHE - 1)

    def hit_probability(self, tenant: Ints, cache: Ints, key: Ints) -> Floats:
        """Probability that a key is found: 1 - exp(-popularity x retention), Che's approximation of LRU.

        Source: Che, Tung and Wang, "Hierarchical Web caching systems", IEEE JSAC 20(7), 2002.
        """
        popularity = self._popularity[self._key_class[tenant, cache], key]
        probability: Floats = -np.expm1(-popularity * self._retention[tenant, cache])
        return probability


def padded(rows: Sequence[Sequence[float]]) -> Floats:
    """Rows of different lengths as one array, filled up with 0."""
    table = np.zeros((len(rows), max(len(r) for r in rows)))
    for index, row in enumerate(rows):
        table[index, : len(row)] = row
    return table
