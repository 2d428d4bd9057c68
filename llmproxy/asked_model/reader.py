"""ModelReader: reads the model of a request out of its body while that passes, and says what may pass."""

from __future__ import annotations

import re
from typing import Protocol

from llmproxy.asked_model.answer import UNDECIDED, Answer, Hidden, Known, Unreadable
from llmproxy.asked_model.form_body import FormBody
from llmproxy.asked_model.json_body import JSONBody
from llmproxy.decoding import Decoder, TooLarge, Undecodable, decoder

LIMIT = 32 * 2**20  # bytes: the largest request that Anthropic's Messages API takes

_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"  # noqa: S105 - RFC 9110 section 5.6.2
_PARAMETER = rf'[ \t]*;[ \t]*({_TOKEN})=({_TOKEN}|"[^"\\]*")'
# RFC 9110 section 8.3.1, without escapes in quoted strings; several Content-Types, joined by commas, are none.
_CONTENT_TYPE = re.compile(rf"[ \t]*({_TOKEN}/{_TOKEN})((?:{_PARAMETER})*)[ \t;]*")
_PARAMETERS = re.compile(_PARAMETER)
# What browsers send text as is JSON to most upstreams. Not so application/x-www-form-urlencoded, which curl says by default:
# the same bytes can be JSON with one model and a form with another.
_JSON = re.compile(r"application/json|text/json|text/plain|[^/]+/[^/]+\+json")
_CHARSETS = frozenset({"", "utf-8", "utf8", "us-ascii"})


class _Body(Protocol):
    """A decoded body that is read for its model; every method may raise :class:`Unreadable`."""

    @property
    def model(self) -> str | None: ...
    @property
    def behind(self) -> bool: ...
    def feed(self, data: bytes) -> None: ...
    def flush(self) -> None: ...
    def close(self) -> None: ...


class ModelReader:
    """Takes the body of one request, and hands out as much of it as may be passed on.

    Its answer is ``UNDECIDED``, then ``Known`` or ``Hidden``; from ``Known`` it can still become ``Hidden``, and then a request
    that was begun must be aborted. A ``Known`` model never changes, and ``Hidden`` is the end.

    :param content_type: the value of the header, several joined by commas; empty where there is none, which is read as JSON.
    :param content_encoding: the same of that header.
    :param limit: bytes in which the model must be found, decoded and as sent; also how much may come out of a compressed body
        in all, and how long a single string may be. Some three times as much memory can be in use.
    :ivar answer: what is known of the model.
    """

    def __init__(self, content_type: bytes, content_encoding: bytes = b"", limit: int = LIMIT) -> None:
        self.answer: Answer = UNDECIDED
        self._limit = limit
        self._held: list[bytes] = []  # as sent
        self._sent = 0  # bytes
        self._looked_at = 0  # bytes, decoded
        try:
            self._decoder = _decoder(content_encoding, limit)
            self._body = _body(content_type, limit)
        except Unreadable as error:
            self.answer = Hidden(str(error))

    def __repr__(self) -> str:
        return f"<ModelReader {self.answer!r}, {self._sent} bytes read>"

    def feed(self, data: bytes) -> bytes:
        """Take what came of the body.

        :return: what may be passed on now, if the model is ``Known`` and allowed; nothing otherwise.
        """
        if isinstance(self.answer, Hidden):
            return b""
        self._held.append(data)
        self._sent += len(data)
        try:
            self._look(self._decoder.feed(data))
            if self._body.model is None and self._sent > self._limit:
                raise self._too_late()
        except (Unreadable, Undecodable) as error:
            return self._hide(error)
        return self._released()

    def close(self) -> bytes:
        """Take note that the body is over; afterwards, the answer is final, and not ``UNDECIDED``.

        :return: as :meth:`feed`. The request may be completed only if the answer is still ``Known``.
        """
        if isinstance(self.answer, Hidden):
            return b""
        try:
            self._decoder.close()
            self._body.close()
        except (Unreadable, Undecodable) as error:
            return self._hide(error)
        return self._released()

    def _look(self, data: bytes) -> None:
        room = self._limit - self._looked_at
        self._looked_at += len(data)
        if self._body.model is None and len(data) > room:
            # However the body was cut, it is the same bytes that the model must be found in.
            self._body.feed(data[:room])
            self._body.flush()
            if self._body.model is None:
                raise self._too_late()
            data = data[room:]
        self._body.feed(data)

    def _released(self) -> bytes:
        model = self._body.model
        if model is None:
            return b""
        if self.answer is UNDECIDED:
            self.answer = Known(model)
        if self._body.behind:
            return b""
        held = self._held[0] if len(self._held) == 1 else b"".join(self._held)
        self._held.clear()
        return held

    def _hide(self, error: Unreadable | Undecodable) -> bytes:
        reason = str(error)
        if isinstance(error, TooLarge):
            reason = f"The body is compressed, and too large to be read. {error}"
        elif isinstance(error, Undecodable):
            reason = f"The body cannot be decompressed. {error}"
        self.answer = Hidden(reason)
        self._held.clear()
        return b""

    def _too_late(self) -> Unreadable:
        return Unreadable(f"The body does not name its model within {self._limit} bytes.")


def _decoder(content_encoding: bytes, limit: int) -> Decoder:
    found = decoder(content_encoding, max_total=limit)
    if found is None:
        raise Unreadable("The body has a Content-Encoding that is not known here; send it as it is.")
    return found


def _body(content_type: bytes, limit: int) -> _Body:
    """Choose the reader of a body by its ``Content-Type``."""
    text = content_type.decode("latin-1")
    if not text.strip(" \t"):
        return JSONBody(limit)
    parsed = _CONTENT_TYPE.fullmatch(text)
    if parsed is None:
        raise Unreadable("The Content-Type cannot be understood.")
    media_type = parsed[1].lower()
    pairs = _PARAMETERS.findall(parsed[2])
    parameters = {name.lower(): value.strip('"') for name, value in pairs}
    if len(parameters) != len(pairs):
        raise Unreadable("The Content-Type has one parameter twice.")
    if parameters.get("charset", "").lower() not in _CHARSETS:
        raise Unreadable("The body is not in UTF-8, as its Content-Type says.")
    if media_type == "multipart/form-data":
        return FormBody(parameters)
    if not _JSON.fullmatch(media_type):
        raise Unreadable("No model is read from a body of this Content-Type; send it as application/json.")
    return JSONBody(limit)
