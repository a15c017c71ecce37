"""What load does to latency: the wait of a single-server queue, M/M/1, grows as 1 / (1 - utilisation)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from sample_data.columns import failed
from sample_data.model import CLIENT_DEADLINE_NS, Bools, Operations, Outcome

USUAL_UTILISATION = 0.3
_UTILISATION_MAX = 0.95


def utilisation_of(slowdown: float) -> float:
    """The utilisation at which calls take so many times as long as usual."""
    return 1 - (1 - USUAL_UTILISATION) / slowdown


def loaded(operations: Operations, which: Bools, utilisation: float, rng: np.random.Generator) -> Operations:
    """The servers of these rows are so busy."""
    slowdown = (1 - USUAL_UTILISATION) / (1 - min(utilisation, _UTILISATION_MAX))
    return slowed(operations, which, slowdown, rng)


def slowed(operations: Operations, which: Bools, factor: float, rng: np.random.Generator) -> Operations:
    """These rows take `factor` times as long in the server; clients give up on those that take too long."""
    served = which & np.isin(operations.outcome, (Outcome.OK, Outcome.INTERNAL))
    server_ns = np.where(served, (operations.server_ns * factor).astype(np.int64), operations.server_ns)
    late = served & (operations.network_ns + server_ns > CLIENT_DEADLINE_NS)
    return failed(replace(operations, server_ns=server_ns), late, Outcome.TIMEOUT, rng)
