"""Which model a request asks for, in a way that no upstream can understand differently.

It is read only for clients whose rights depend on it (:func:`llmproxy.rights.depend_on_model`). What may be asked for is
decided by :mod:`llmproxy.rights`; here, a name is read as it was sent. Pure: no reactor, no I/O.

Where the model stands, and what counts:

====================================  ==============================================================================
request                               its model
====================================  ==============================================================================
path that names one                   that one: Gemini and Azure go by the path, so the body is not read
(:func:`model_of_path`)
query that names one                  that one, of a WebSocket; of anything else it must be allowed too, and the body is
(:func:`model_of_query`)              read all the same. Path and query may not name different ones.
WebSocket handshake, otherwise        that of the first message, which is read once the upstream has agreed to speak
                                      (:class:`SessionGuard`).
GET, HEAD, OPTIONS, DELETE without a  none, and none is run: it passes (:func:`may_name_none`).
body, otherwise
anything else                         that of its body (:class:`ModelReader`), JSON or a form; refused if it has none.
====================================  ==============================================================================

Behind a WebSocket's handshake, whatever named the session's model, each message of the client is read whole by a
:class:`SessionGuard` before it passes, since it could name another one.

A body is passed on from the moment that its model is known, and read along to its end: JSON allows a second ``model`` to stand
at the very end, and most parsers take the last one. Should one turn up that differs, the answer becomes :class:`Hidden`, and
the upload must be aborted. That is sound, since nothing is handed out that could be part of a name, or the body's end, and was
not read: an upstream never gets the end of a body that says two things, and what it did get names only the allowed model.

Whatever parsers are known to disagree about is refused rather than guessed: look-alikes of the key (Go's ``encoding/json``
takes ``Model`` for ``model``), other charsets, forms with sloppy delimiters. So is a body with models to fall back on. Not
looked for are models deeper in the body, where they are data: but a few of a provider's *tools* run a model of their own, which
is named there.
"""

from llmproxy.asked_model.answer import UNDECIDED, Answer, Hidden, Known, Undecided
from llmproxy.asked_model.reader import LIMIT, ModelReader
from llmproxy.asked_model.session import SessionGuard
from llmproxy.asked_model.target import may_name_none, model_of_path, model_of_query, model_of_target

__all__ = [
    "LIMIT",
    "UNDECIDED",
    "Answer",
    "Hidden",
    "Known",
    "ModelReader",
    "SessionGuard",
    "Undecided",
    "may_name_none",
    "model_of_path",
    "model_of_query",
    "model_of_target",
]
