"""A request of LibreTranslate's, read and checked."""

import json
from typing import Literal
from urllib.parse import parse_qs

from fastapi import Request
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lvnar_hf.serving.translations import RefusedError

# Bytes of a character at its worst, in a form (%F0%9F%98%80) or in JSON (\ud83d\ude00); and of all that is not text.
_BYTES_A_CHARACTER, _OTHER_BYTES = 12, 4096
_FORM = "application/x-www-form-urlencoded"


class TranslateRequest(BaseModel):
    """What is asked; fields that are not here, such as `api_key` and `alternatives`, change nothing."""

    model_config = ConfigDict(
        strict=True, json_schema_extra={"examples": [{"q": "Where is the station?", "source": "en", "target": "de"}]}
    )

    q: str | list[str] = Field(description="a text, or a list of texts")
    source: str = Field(description='a language of /languages, or "auto" where there is only one for the target')
    target: str = Field(description="a language of /languages")
    format: Literal["text", "html"] = Field("text", description="of the texts")

    @property
    def texts(self) -> list[str]:
        """The texts, of a list or the only one."""
        return [self.q] if isinstance(self.q, str) else self.q


class DetectedLanguage(BaseModel):
    """The language taken for "auto"; nothing is measured, so that the confidence is 0."""

    confidence: float = 0.0
    language: str


class TranslateResponse(BaseModel):
    """The translation of a text, or those of a list."""

    translatedText: str | list[str]
    detectedLanguage: DetectedLanguage | None = None


class ErrorResponse(BaseModel):
    """What is wrong."""

    error: str


async def read_body(request: Request, max_characters: int) -> bytes:
    """The body.

    Raises:
        RefusedError: it is larger than a request of so many characters can be.
        ClientDisconnect: the client has gone.
    """
    limit = max_characters * _BYTES_A_CHARACTER + _OTHER_BYTES
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            raise RefusedError(413, "size", f"The request is too large: at most {max_characters} characters of text.")
    return bytes(body)


def parse_request(body: bytes, content_type: str, max_characters: int) -> TranslateRequest:
    """A request in JSON or of a form.

    Raises:
        RefusedError: it is not one, or it has too many characters.
    """
    kind = content_type.partition(";")[0].strip().lower()
    if kind == "application/json" or kind.endswith("+json"):
        fields = _parse_json(body)
    elif kind in ("", _FORM):
        fields = _parse_form(body)
    else:
        raise RefusedError(415, "content_type", f"Content-Type must be application/json or {_FORM}.")
    try:
        asked = TranslateRequest.model_validate(fields)
    except ValidationError as error:
        told = dict.fromkeys(
            f"{'.'.join(map(str, one['loc'][:1])) or 'request'}: {one['msg']}" for one in error.errors()
        )
        raise RefusedError(400, "fields", "; ".join(told)) from None
    num_characters = sum(len(text) + 1 for text in asked.texts)
    if num_characters > max_characters + 1:
        raise RefusedError(
            413, "characters", f"The request has {num_characters - 1} characters; at most {max_characters} are allowed."
        )
    for text in (*asked.texts, asked.source, asked.target):
        try:
            text.encode()
        except UnicodeEncodeError:
            raise RefusedError(400, "encoding", "The request holds half a character (a surrogate).") from None
    return asked


def _parse_json(body: bytes) -> object:
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        raise RefusedError(400, "json", "The body is no JSON in UTF-8.") from None


def _parse_form(body: bytes) -> dict[str, object]:
    try:
        fields = parse_qs(body.decode(), keep_blank_values=True, errors="strict", max_num_fields=1000)
    except ValueError:
        raise RefusedError(400, "form", "The body is no form in UTF-8 with at most 1000 fields.") from None
    return {name: values if name == "q" and len(values) > 1 else values[0] for name, values in fields.items()}
