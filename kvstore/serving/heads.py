"""The head of a response as bytes. Source: RFC 9112 sections 4 and 5."""

from http import HTTPStatus

from kvstore.http.messages import Headers, Response

STATUS_LINES = {status.value: f"HTTP/1.1 {status.value} {status.phrase}".encode() for status in HTTPStatus}


def field_lines(headers: Headers) -> bytes:
    """Return header fields as lines, each preceded by CRLF."""
    return "".join([f"\r\n{name}: {value}" for name, value in headers]).encode("latin-1")


def response_head(response: Response, date: bytes, method: str, *, is_1_1: bool, keeps: bool) -> bytes:
    """Return the head of a response, up to its body; `date` is a line. A body in parts is chunked by HTTP/1.1.

    Source: RFC 9110 section 8.6, RFC 9112 sections 6 and 9.
    """
    status, headers, body, more = response
    framing = b""
    if more is not None:
        if is_1_1:
            framing = b"\r\nTransfer-Encoding: chunked"
    elif status not in (204, 304) and (body or method != "HEAD"):
        framing = b"\r\nContent-Length: %d" % len(body)
    connection = b""
    if not keeps:
        connection = b"\r\nConnection: close"
    elif not is_1_1:
        connection = b"\r\nConnection: keep-alive"
    return b"".join((STATUS_LINES[status], date, field_lines(headers), framing, connection, b"\r\n\r\n"))
