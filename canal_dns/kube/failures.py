"""What goes wrong between us and an API server, as a value of one type, and what Kubernetes' own words for it mean.

Rules of this file:
- `code` is a bounded set, fit for a metric: the HTTP status, or connect, timeout, cut, decode, config;
- `text` is for people: the server's message where it gave one;
- the shapes of "your resourceVersion is of no use" (client-go: isExpiredError, isTooLargeResourceVersionError) are told here.
"""

from __future__ import annotations

import msgspec

MAX_TEXT = 500
"""Characters of a server's words that are kept."""


class ApiError(Exception):
    """A request that failed, or a stream that ended in an error."""

    def __init__(self, code: str, text: str, *, reason: str = "", retry_after: float | None = None) -> None:
        self.code = code
        self.text = " ".join(text.split())[:MAX_TEXT]
        self.reason = reason
        """Why the list has to be read again: expired or too_large; "": no cause for that."""
        self.retry_after = retry_after
        """Seconds that the server asks for."""
        super().__init__(f"{code}: {self.text}")


class _Cause(msgspec.Struct):
    reason: str = ""


class _Details(msgspec.Struct):
    retryAfterSeconds: float = 0.0  # noqa: N815
    causes: list[_Cause] | None = None


class Status(msgspec.Struct):
    """Kubernetes' meta/v1 Status."""

    kind: str = ""
    code: int = 0
    reason: str = ""
    message: str = ""
    details: _Details | None = None


_decode = msgspec.json.Decoder(Status).decode


def from_answer(status: int, body: bytes, retry_after: float | None = None) -> ApiError:
    """The trouble that a response with this status and body stands for; a body that is no Status is quoted."""
    try:
        told = _decode(body)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        told = Status()
    if told.kind != "Status":
        told = Status(message=body[:MAX_TEXT].decode("utf-8", "replace"))
    told.code = status
    return from_status(told, retry_after)


def from_event(body: bytes | msgspec.Raw) -> ApiError:
    """The trouble that an ERROR event's object, or a Status in the place of an event, stands for."""
    try:
        return from_status(_decode(body))
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return ApiError("500", "an ERROR event that says nothing")


def from_status(told: Status, retry_after: float | None = None) -> ApiError:
    details = told.details or _Details()
    reason = ""
    if told.code == 410 or told.reason in ("Expired", "Gone"):
        reason = "expired"
    elif any(cause.reason == "ResourceVersionTooLarge" for cause in details.causes or ()) or (
        # Servers before 1.17 give no cause.
        "too large resource version" in told.message.lower()
    ):
        reason = "too_large"
    asked = retry_after if retry_after is not None else details.retryAfterSeconds or None
    code = told.code or (410 if reason == "expired" else 500)
    return ApiError(str(code), told.message or told.reason or f"HTTP status {code}", reason=reason, retry_after=asked)
