"""Prefix caching that stays right: what a request may read from the cache, and what it may put there.

vLLM looks blocks up by a hash of their tokens alone. So
- a request that is not decided yet reads no block that reaches the first token its gate reads (the hit is
  capped
  there: those few tokens are computed again);
- an open request neither reads nor writes a block that holds a steered position;
- a request that is not decided yet writes no block that holds a position which may turn out to be steered;
- a closed request reads and writes everything, as without the plugin.
No block in the cache is ever steered, so nothing has to be hashed differently, and requests of every kind
share the blocks before the end of their prompts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Limit = Callable[[Any], int | None]
"""Number of leading tokens of a request that may be read or written; None for all."""


class PrefixCacheLimits:
    """Puts the two limits around a `KVCacheManager`, on this instance only."""

    def __init__(self, manager: Any, *, readable: Limit, writable: Limit) -> None:
        self._readable = readable
        self._writable = writable
        self._cap: int | None = None  # of the request that is being looked up
        coordinator = manager.coordinator
        self._computed = manager.get_computed_blocks
        self._find = coordinator.find_longest_cache_hit
        self._cache = coordinator.cache_blocks
        manager.get_computed_blocks = self.get_computed_blocks
        coordinator.find_longest_cache_hit = self.find_longest_cache_hit
        coordinator.cache_blocks = self.cache_blocks

    def get_computed_blocks(self, request: Any, *args: Any, **options: Any) -> Any:
        """As the manager's own; the lookup inside it sees the cap. vLLM 0.33 may give a limit of its own."""
        self._cap = self._readable(request)
        try:
            return self._computed(request, *args, **options)
        finally:
            self._cap = None

    def find_longest_cache_hit(self, block_hashes: Any, max_cache_hit_length: int) -> Any:
        """As the coordinator's own, for no more than the cap."""
        if self._cap is not None:
            max_cache_hit_length = max(min(max_cache_hit_length, self._cap), 0)
        return self._find(block_hashes, max_cache_hit_length)

    def cache_blocks(self, request: Any, num_computed_tokens: int) -> None:
        """As the coordinator's own, for no more than may be written."""
        limit = self._writable(request)
        if limit is not None:
            num_computed_tokens = min(num_computed_tokens, limit)
        self._cache(request, num_computed_tokens)
