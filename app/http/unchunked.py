"""Responses of unknown length to HTTP/1.0, which has no chunks (RFC 9112, section 6.1): the end of the
connection ends them. uvicorn sends chunks to all clients.
"""

from starlette.types import Message, Send
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle


def without_chunks(cycle: RequestResponseCycle) -> Send:
    """What `cycle.send` does, but without chunks. uvicorn closes the connection after it anyway."""
    send, is_open = cycle.send, False

    async def send_plain(message: Message) -> None:
        nonlocal is_open
        if message["type"] == "http.response.start":
            is_open = not any(name.lower() == b"content-length" for name, _ in message["headers"])
            if is_open:
                cycle.chunked_encoding = False
        elif is_open:
            cycle.expected_content_length = len(message.get("body", b""))
        await send(message)  # type: ignore[arg-type]

    return send_plain
