"""The model in a form (RFC 7578, ``multipart/form-data``): the field ``model``, wherever it stands.

``multipart`` reads the grammar. Multipart parsers differ in what they forgive, and what one takes for the middle of a file is a
field to another; so this module sees to it that there is nothing to forgive: every boundary is where a delimiter must be, and
every header of a part has one meaning.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from multipart import MultipartError, MultipartSegment, PushMultipartParser  # type: ignore[import-untyped]

from llmproxy.asked_model.answer import Unreadable, agreed, is_model

# RFC 2046 section 5.1.1, without the colon, which would make a header line of a boundary, and without the space.
_BOUNDARY = re.compile(r"[0-9A-Za-z'()+_,./=?-]{1,70}")
# RFC 7578 section 4.2. Quotes and backslashes within quotes, and percent-encoded names, are where parsers part ways.
_PARAMETER = r'(?:"[^"\\]*"|[!#$&+.^_`|~0-9A-Za-z-]+)'
_DISPOSITION = re.compile(
    rf"form-data; ?name=(?P<name>{_PARAMETER})"
    rf"(?P<file>; ?filename={_PARAMETER})?(?P<extended>; ?filename\*=[!#$&+.^_`|~0-9A-Za-z%'-]+)?"
)
_TEXT = re.compile(r'(?:text/plain(?:; ?charset="?(?:utf-8|us-ascii)"?)?)?', re.IGNORECASE)
_LONGEST_NAME = 1024  # bytes; a model's name has fewer

_SLOPPY = "The form's parts are not delimited as RFC 2046 wants it, so that it could be read in two ways."
_SLOPPY_HEADERS = "A part of the form has headers that could be read in two ways."


class FormBody:
    """Reads a form for its model.

    :param parameters: of the ``Content-Type``.
    :raise Unreadable: where they do not tell how to read it.
    """

    def __init__(self, parameters: Mapping[str, str]) -> None:
        boundary = parameters.get("boundary", "")
        if not _BOUNDARY.fullmatch(boundary):
            raise Unreadable("The form's Content-Type has no boundary, or one that RFC 2046 does not allow.")
        self.model: str | None = None
        self._delimiters = _Delimiters(b"--" + boundary.encode("ascii"))
        self._parser = PushMultipartParser(boundary, strict=True)
        self._value: bytearray | None = None  # of the field that is being read, where that is the model

    @property
    def behind(self) -> bool:
        """Whether the name of a model is under way, of which nobody may get the start before its end was read."""
        return self._value is not None

    def feed(self, data: bytes) -> None:
        """Read on.

        :raise Unreadable: where the model cannot be told any more.
        """
        if not data:
            return
        self._delimiters.feed(data)
        if self._delimiters.ended_before:
            return  # a line break, as was seen to
        try:
            for event in self._parser.parse(data):
                if isinstance(event, MultipartSegment):
                    self._value = bytearray() if _is_model_field(event) else None
                elif self._value is not None:
                    self._take(event)
        except MultipartError:
            raise Unreadable(_SLOPPY) from None

    def flush(self) -> None:
        """Nothing is ever held."""

    def close(self) -> None:
        """Take note that the body is over.

        :raise Unreadable: where it was not whole, or named no model.
        """
        if not self._delimiters.ended:
            raise Unreadable("The form is not whole: its last boundary is missing.")
        if self.model is None:
            raise Unreadable("The form has no field 'model'.")

    def _take(self, piece: bytes | None) -> None:
        """Take a piece of the model's name, or ``None`` for its end."""
        assert self._value is not None  # noqa: S101 - for the type checker
        if piece is not None:
            self._value += piece
            if len(self._value) > _LONGEST_NAME:
                raise Unreadable(f"The form's field 'model' has more than {_LONGEST_NAME} bytes.")
            return
        # What is not ASCII is refused there.
        name = self._value.decode("latin-1")
        self.model = agreed((name, *((self.model,) if self.model else ())))
        self._value = None


class _Delimiters:
    """Watches a form for its boundary: it may stand only in delimiters, and nothing before the first or behind the last.

    :ivar ended: the last delimiter was seen.
    :ivar ended_before: it was seen before the bytes that were fed last.
    """

    def __init__(self, mark: bytes) -> None:
        self._mark = mark
        self._opening = mark  # what must come first of all, as far as it did not
        self._tail = (
            b"\r\n"  # the last bytes, in which a delimiter can have begun; the first one needs no line break
        )
        self.ended = self.ended_before = False

    def feed(self, data: bytes) -> None:
        """Look at the next bytes; raises :class:`Unreadable`."""
        start = data[: len(self._opening)]
        if not self._opening.startswith(start):
            raise Unreadable(_SLOPPY)
        self._opening = self._opening[len(start) :]
        self.ended_before = self.ended
        seen, at = self._tail + data, 0
        while not self.ended and 0 <= (found := seen.find(self._mark, at)) <= len(seen) - len(self._mark) - 2:
            at = found + len(self._mark)
            self.ended = seen[at : at + 2] == b"--"
            if seen[found - 2 : found] != b"\r\n" or not (self.ended or seen[at : at + 2] == b"\r\n"):
                raise Unreadable(_SLOPPY)
        if not self.ended:
            # As much as an undecided mark, the line break before it and one byte after it can have.
            self._tail = seen[max(at, len(seen) - len(self._mark) - 3) :]
        else:
            # Some writers end the last line, and RFC 2046 lets more follow: where a lenient parser might find more parts.
            self._tail = seen[at + 2 :] if not self.ended_before else seen
            if not b"\r\n".startswith(self._tail):
                raise Unreadable(_SLOPPY)


def _is_model_field(part: MultipartSegment) -> bool:
    """Tell whether a part is the field ``model``; raises :class:`Unreadable` where others could think otherwise."""
    headers = {name.lower(): value for name, value in part.headerlist}
    if len(headers) != len(part.headerlist) or not all(value.isprintable() for value in headers.values()):
        raise Unreadable(_SLOPPY_HEADERS)
    disposition = _DISPOSITION.fullmatch(headers["content-disposition"])
    if disposition is None:
        raise Unreadable(_SLOPPY_HEADERS)
    name = disposition["name"].strip('"')
    if "%" in name:
        raise Unreadable(_SLOPPY_HEADERS)
    if not is_model(name):
        return False
    plain = _TEXT.fullmatch(headers.get("content-type", "")) and "content-transfer-encoding" not in headers
    if not plain or disposition["file"] or disposition["extended"]:
        raise Unreadable("The form's field 'model' is not plain text.")
    return True
