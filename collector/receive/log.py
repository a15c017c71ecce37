"""The log of the servers."""

from __future__ import annotations

import logging

log = logging.getLogger("collector.receive")
