"""Errors for clients, in OpenAI's format."""

from __future__ import annotations

from typing import Any

from inferaligner.errors import InferAlignerError

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    409: "conflict_error",
    413: "invalid_request_error",
    429: "rate_limit_error",
    503: "service_unavailable_error",
}


class ApiError(InferAlignerError):
    """An error response. `param` names the field of the request that has the error."""

    def __init__(
        self, message: str, *, status: int = 400, param: str | None = None, code: str | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.param = param
        self.code = code

    def body(self) -> dict[str, Any]:
        """The body of the response: `{"error": {"message", "type", "param", "code"}}`."""
        kind = _TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}


def no_such_model(requested: str, served: str) -> ApiError:
    """The error of a request for another model than the served one."""
    return ApiError(
        f"There is no model {requested!r:.100}; this server has {served!r}.",
        status=404,
        param="model",
        code="model_not_found",
    )


class QueueFullError(ApiError):
    """The queue is full (429), or the server is shutting down (503)."""

    def __init__(self, message: str, *, status: int = 429) -> None:
        super().__init__(message, status=status, code="queue_full" if status == 429 else "shutting_down")
