"""The OpenAI half of the demo upstream: its paths, its key, its models and the shape of its errors."""

from __future__ import annotations

from twisted.web.http_headers import Headers

from llmproxy.demo import chat, embeddings, responses
from llmproxy.demo.api import Answer, Api, ApiError, Call
from llmproxy.demo.fields import BadField, BadJson, Json

OPENAI_KEY = "demo-openai-key"
"""The key that the OpenAI half asks for. No secret: it opens nothing but the demo."""

MODELS = ("demo-large", "demo-small", "demo-embedding")
"""The models that are listed. A request may name any other: the answer is the same."""

_MODELS_CREATED = 1_735_689_600  # 2025-01-01


class OpenAI(Api):
    """Answers as https://api.openai.com does, to what the demo knows."""

    request_id_header = "x-request-id"

    def authorize(self, headers: Headers) -> None:
        """Require `Authorization: Bearer OPENAI_KEY`, once."""
        given = headers.getRawHeaders("authorization")
        if given is None:
            raise _invalid(
                401,
                "You didn't provide an API key. Provide it in an Authorization header, as in "
                "'Authorization: Bearer YOUR_KEY'.",
            )
        if given != [f"Bearer {OPENAI_KEY}"]:
            # The real one repeats a part of the wrong key here; a key in a log helps nobody.
            raise _invalid(401, "Incorrect API key provided.", code="invalid_api_key")

    def answer(self, call: Call) -> Answer:
        """Answer `call`."""
        match call.method, call.path:
            case "POST", ("v1", "chat", "completions"):
                return chat.answer(call.body(), call.token, call.now)
            case "POST", ("v1", "responses"):
                return responses.answer(call.body(), call.token, call.now)
            case "POST", ("v1", "embeddings"):
                return embeddings.answer(call.body())
            case "GET", ("v1", "models"):
                return {"object": "list", "data": [_model(name) for name in MODELS]}
            case "GET", ("v1", "models", name):
                if name not in MODELS:
                    raise _invalid(404, f"The model '{name}' does not exist", "model", "model_not_found")
                return _model(name)
        raise _invalid(404, f"Invalid URL ({call.method} /{'/'.join(call.path)})")

    def explain(self, problem: BadJson | BadField) -> ApiError:
        """Word a bad request body."""
        if isinstance(problem, BadJson):
            return _invalid(400, f"We could not parse the JSON body of your request: {problem.reason}.")
        name = problem.name
        if problem.expected is None:
            return _invalid(400, f"Missing required parameter: '{name}'.", name, "missing_required_parameter")
        message = f"Invalid value for '{name}': expected {problem.expected}."
        return _invalid(400, message, name, "invalid_value")

    def error_body(self, error: ApiError, request_id: str) -> Json:
        """Return OpenAI's error object; the request id is in the header only."""
        shown = {"message": error.message, "type": error.type, "param": error.param, "code": error.code}
        return {"error": shown}


def _invalid(status: int, message: str, param: str | None = None, code: str | None = None) -> ApiError:
    return ApiError(status, "invalid_request_error", message, param, code)


def _model(name: str) -> Json:
    return {"id": name, "object": "model", "created": _MODELS_CREATED, "owned_by": "llmproxy"}
