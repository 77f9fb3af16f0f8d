"""What is asked of an API server, whoever asks it: `cluster` answers with the real libraries, tests with what they like.

Rules of this file:
- a GET is all that this program ever does;
- no library is imported for it: who lists and watches does not know how it is done.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from canal_dns.kube import failures


class Reply(Protocol):
    """The answer to a GET, while it arrives."""

    @property
    def status(self) -> int: ...

    @property
    def retry_after(self) -> float | None: ...

    def chunks(self) -> AsyncIterator[bytes]: ...

    async def error(self) -> bytes: ...


class Api(Protocol):
    """One API server, asked as one user."""

    def get(self, path: str, query: Mapping[str, str], *, silence: float) -> AbstractAsyncContextManager[Reply]: ...


async def check(reply: Reply) -> None:
    """Raises ApiError, in the server's words, for every status but 200."""
    if reply.status != 200:
        raise failures.from_answer(reply.status, await reply.error(), reply.retry_after)
