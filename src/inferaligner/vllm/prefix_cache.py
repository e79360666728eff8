"""Prefix caching that never shares a steered block: limits of what a request reads and writes there.

vLLM identifies a block by a hash of its tokens alone. Therefore
- a request without a decision reads no block that reaches the first token its gate reads: these few tokens
  are computed again;
- a request whose gate is open neither reads nor writes a block that holds a steered position;
- a request without a decision writes no block that holds a position which may turn out to be steered;
- a request whose gate is closed reads and writes every block, as without the plugin.
No block in the cache is ever steered, so vLLM's hashes stay as they are, and all requests share the blocks
before the ends of their prompts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Limit = Callable[[Any], int | None]
"""Maps a request to the number of its leading tokens that may be read or written; None for all."""


class PrefixCacheLimits:
    """Applies a read limit and a write limit to one `KVCacheManager`, by wrapping methods of the instance."""

    def __init__(self, manager: Any, *, readable: Limit, writable: Limit) -> None:
        self._readable = readable
        self._writable = writable
        self._limit: int | None = None  # for the request that is being looked up
        coordinator = manager.coordinator
        self._computed = manager.get_computed_blocks
        self._find = coordinator.find_longest_cache_hit
        self._cache = coordinator.cache_blocks
        manager.get_computed_blocks = self.get_computed_blocks
        coordinator.find_longest_cache_hit = self.find_longest_cache_hit
        coordinator.cache_blocks = self.cache_blocks

    def get_computed_blocks(self, request: Any, *args: Any, **options: Any) -> Any:
        """Replaces the manager's method: the lookup inside it is limited. vLLM 0.33 may pass a limit too."""
        self._limit = self._readable(request)
        try:
            return self._computed(request, *args, **options)
        finally:
            self._limit = None

    def find_longest_cache_hit(self, block_hashes: Any, max_cache_hit_length: int) -> Any:
        """Replaces the coordinator's method: the hit is no longer than the limit."""
        if self._limit is not None:
            max_cache_hit_length = max(min(max_cache_hit_length, self._limit), 0)
        return self._find(block_hashes, max_cache_hit_length)

    def cache_blocks(self, request: Any, num_computed_tokens: int) -> None:
        """Replaces the coordinator's method: no tokens behind the limit are cached."""
        limit = self._writable(request)
        if limit is not None:
            num_computed_tokens = min(num_computed_tokens, limit)
        self._cache(request, num_computed_tokens)
