"""API keys: which key may use which routes.

Each line of the key file has a key and prefixes of the routes that it may use: `KEY /v1 /inferaligner`. A key
may be given by its hash, as `sha256:HEX`. Without a key file, every route but `/admin` is open to everybody;
`/admin` always needs a key.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from inferaligner.errors import InputError
from inferaligner.server.errors import ApiError

PUBLIC = ("/", "/health", "/openapi.json")
"""Routes that need no key: they show nothing about requests."""

ADMIN = "/admin"
_DEFAULT_ROUTES = ("/v1", "/inferaligner", "/metrics")


@dataclass(frozen=True)
class ApiKeys:
    """Prefixes of the allowed routes, by the SHA-256 of the key."""

    routes: Mapping[str, tuple[str, ...]]

    @classmethod
    def read(cls, file: str | Path | None) -> ApiKeys:
        """Reads a key file; None for no keys.

        Raises:
            InputError: the file cannot be read, or is not as described above.
        """
        if file is None:
            return cls({})
        place = Path(file)
        try:
            lines = place.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"The key file {place} cannot be read ({error}).") from None
        routes: dict[str, tuple[str, ...]] = {}
        for number, line in enumerate(lines, start=1):
            words = line.split("#", 1)[0].split()
            if not words:
                continue
            key, *opens = words
            wrong = [route for route in opens if not route.startswith("/")]
            digest = key.removeprefix("sha256:").lower() if key.startswith("sha256:") else _digest(key)
            if wrong or len(digest) != 64 or set(digest) - set("0123456789abcdef"):
                raise InputError(
                    f"{place}, line {number}: expected a key (or sha256: and 64 hexadecimal digits) and "
                    "routes that begin with a slash, such as `KEY /v1 /metrics`."
                )
            routes[digest] = tuple(opens) or _DEFAULT_ROUTES
        if not routes:
            raise InputError(f"The key file {place} has no key; leave --api-keys out to serve without.")
        return cls(routes)

    def check(self, path: str, authorization: str | None) -> None:
        """Checks a request.

        Args:
            path: of the route.
            authorization: value of the request's Authorization header.

        Raises:
            ApiError: the key is missing or unknown (401), or may not use this route (403).
        """
        administers = _under(path, ADMIN)
        if path in PUBLIC or (not self.routes and not administers):
            return
        if not self.routes:
            raise ApiError(
                "There is no key for /admin routes; the operator gives one with --api-keys.", status=403
            )
        scheme, _, key = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not key.strip():
            raise ApiError(
                "This route needs an API key: Authorization: Bearer KEY.", status=401, code="missing_api_key"
            )
        given = _digest(key.strip())
        opens = [
            routes for digest, routes in self.routes.items() if hmac.compare_digest(digest, given)
        ]  # compares with every key, so that the time taken depends on no key
        if not opens:
            raise ApiError("This API key is not known here.", status=401, code="invalid_api_key")
        if not any(_under(path, route) for route in opens[0]):
            raise ApiError("This API key does not open this route.", status=403, code="route_not_allowed")


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "replace")).hexdigest()


def _under(path: str, route: str) -> bool:
    route = route.rstrip("/")
    return path == route or path.startswith(route + "/")
