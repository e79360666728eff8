"""Requests and responses, field by field; FastAPI makes the OpenAPI description from them.

An unknown field is refused with status 400 and its name: a misspelt option that is ignored would be a hidden
bug of the client. Every field of OpenAI's is described (a test compares them with the types of the
`openai` package). Fields that this server does not support are accepted with values that change nothing
(`Neutral`), null included.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    Tag,
    model_validator,
)
from pydantic_core import CoreSchema, PydanticCustomError, core_schema


def _whole(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise PydanticCustomError(
            "unicode", "The text is not valid Unicode (half of a surrogate pair)"
        ) from None
    return text


class Neutral:
    """The type of a field that this server does not support: null and `values` are accepted, other values are
    refused with `reason`."""

    def __init__(self, reason: str, *values: Any) -> None:
        self._reason = reason
        self._values = (None, *values)

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(self._check)

    def __get_pydantic_json_schema__(self, schema: Any, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"enum": list(self._values), "description": f"Otherwise: {self._reason}."}

    def _check(self, value: Any) -> Any:
        if not any(type(value) is type(each) and value == each for each in self._values):
            raise PydanticCustomError("not_served", "{reason}", {"reason": self._reason})
        return value


def _one_of(kind: Callable[[Any], str | None], expected: str) -> Discriminator:
    """Chooses the type of a field by the value's form, so that errors concern this type alone."""
    return Discriminator(kind, custom_error_type="kind", custom_error_message=f"Expected {expected}")


def _text_or_list(value: Any) -> str | None:
    return "<text>" if isinstance(value, str) else "<list>" if isinstance(value, list) else None


def _kind_of_part(value: Any) -> str | None:
    kind = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    return f"<{kind}>" if kind in ("text", "image_url", "refusal") else None


def _kind_of_prompt(value: Any) -> str | None:
    if not isinstance(value, list):
        return "<text>" if isinstance(value, str) else None
    first = value[0] if value else ""
    if isinstance(first, int) and not isinstance(first, bool):
        return "<tokens>"
    return "<texts>" if isinstance(first, str) else "<lists of tokens>" if isinstance(first, list) else None


TAGS = frozenset(
    f"<{kind}>" for kind in ("text", "list", "image_url", "refusal", "tokens", "texts", "lists of tokens")
)
"""Tags of the chosen types, which pydantic puts into the path of an error; they are no fields."""

_NO_TOOLS = "this server does not serve tools yet"
_TEXT_ALONE = "this server answers in plain text only"

Text = Annotated[str, AfterValidator(_whole)]
Stop = Annotated[Text, Field(min_length=1, max_length=200)]
Count = Annotated[int, Field(ge=0, le=10_000_000)]
Token = Annotated[int, Field(ge=0, le=10_000_000)]
Tokens = Annotated[list[Token], Field(min_length=1, max_length=1_000_000)]

StopTexts = Annotated[
    Annotated[Stop, Tag("<text>")] | Annotated[list[Stop], Field(max_length=16), Tag("<list>")],
    _one_of(_text_or_list, "a text, or a list of texts"),
]


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class StreamOptions(_Request):
    """`include_usage` adds a last chunk with token counts."""

    include_usage: bool | None = None
    include_obfuscation: Annotated[
        Any, Neutral("this server does not obfuscate the sizes of chunks", False)
    ] = None


class GateOptions(_Request):
    """Options of this server.

    `strength` replaces the aligner's α for this request (0: the bare model), where the operator allows that;
    `trace` adds the monitor's running score to the chunks of a stream.
    """

    strength: float | None = Field(None, ge=0, le=1000, allow_inf_nan=False)
    trace: bool | None = None


class _Generation(_Request):
    model: Text | None = Field(None, description="As in GET /v1/models; optional.")
    n: int | None = Field(None, ge=1, le=128)
    seed: int | None = Field(None, ge=-(2**63), le=2**63 - 1)
    temperature: float | None = Field(None, ge=0, le=2, allow_inf_nan=False)
    top_p: float | None = Field(None, ge=0, le=1, allow_inf_nan=False)
    top_k: int | None = Field(None, ge=-1, le=10_000_000, description="-1 or 0: no limit.")
    min_p: float | None = Field(None, ge=0, le=1, allow_inf_nan=False)
    repetition_penalty: float | None = Field(None, gt=0, le=100, allow_inf_nan=False)
    presence_penalty: float | None = Field(None, ge=-2, le=2, allow_inf_nan=False)
    frequency_penalty: float | None = Field(None, ge=-2, le=2, allow_inf_nan=False)
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = Field(None, max_length=1024)
    stop: StopTexts | None = None
    stop_token_ids: Annotated[list[Token], Field(max_length=64)] | None = None
    ignore_eos: bool | None = None
    min_tokens: Count | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: Text | None = None
    inferaligner: GateOptions | None = None


class _Part(_Request):
    # Options of a prompt cache, which this server does not have.
    cache_control: dict[str, Any] | None = None
    prompt_cache_breakpoint: dict[str, Any] | None = None


class TextPart(_Part):
    """A piece of a message."""

    type: Literal["text"]
    text: Text


class RefusalPart(_Part):
    """A refusal of the assistant, as a part of a message."""

    type: Literal["refusal"]
    refusal: Text

    @property
    def text(self) -> str:
        """The refusal."""
        return self.refusal


class ImageUrl(_Request):
    """The URL of an image: a `data:` URL, or an https URL of a host that the operator allows."""

    url: Annotated[Text, Field(min_length=1)]
    detail: Literal["auto", "low", "high"] | None = Field(
        None, description="Ignored: the model has one resolution."
    )


class ImagePart(_Part):
    """An image in a message of the user, for a vision-language model."""

    type: Literal["image_url"]
    image_url: ImageUrl


Part = Annotated[
    Annotated[TextPart, Tag("<text>")]
    | Annotated[ImagePart, Tag("<image_url>")]
    | Annotated[RefusalPart, Tag("<refusal>")],
    _one_of(_kind_of_part, "a part of type text, image_url, or in the assistant's turns refusal"),
]
Content = Annotated[
    Annotated[Text, Tag("<text>")]
    | Annotated[list[Part], Field(min_length=1, max_length=1024), Tag("<list>")],
    _one_of(_text_or_list, "a text, or a list of parts"),
]


def _served_role(role: str) -> str:
    if role in ("tool", "function"):
        raise PydanticCustomError(
            "not_served", "This server does not serve tools yet, so there are no results of tools"
        )
    return role


class Message(_Request):
    """One turn of a conversation.

    An assistant's message may have every field that servers with OpenAI's API put into an answer, so that
    clients can send answers back unchanged.
    """

    role: Annotated[
        Literal["system", "developer", "user", "assistant", "tool", "function"], AfterValidator(_served_role)
    ]
    content: Content | None = None
    name: Text | None = None
    refusal: Text | None = None
    reasoning: Text | None = None
    reasoning_content: Text | None = None
    annotations: list[Any] | None = Field(None, description="Ignored: the model does not get them.")
    # Fields that client libraries and this server add to an answer. They are ignored.
    cache_control: dict[str, Any] | None = None
    parsed: Any = None
    provider_specific_fields: Any = None
    inferaligner: Any = None
    tool_calls: Annotated[Any, Neutral(_NO_TOOLS, [])] = None
    tool_call_id: Annotated[Any, Neutral(_NO_TOOLS)] = None
    function_call: Annotated[Any, Neutral(_NO_TOOLS)] = None
    audio: Annotated[Any, Neutral("this server's model has no audio")] = None

    @model_validator(mode="after")
    def _consistent(self) -> Message:
        if self.role == "assistant":
            return self
        if self.content is None:
            raise PydanticCustomError(
                "no_content", "The {role}'s turn has no {field}", {"role": self.role, "field": "content"}
            )
        for field in ("refusal", "reasoning", "reasoning_content"):
            if getattr(self, field) is not None:
                raise PydanticCustomError(
                    "no_answer", "Only the assistant's turns have {field}", {"field": field}
                )
        if not isinstance(self.content, str) and any(isinstance(part, RefusalPart) for part in self.content):
            raise PydanticCustomError(
                "no_answer", "Only the assistant's turns have parts of type refusal", {"field": "content"}
            )
        return self

    @property
    def text(self) -> str:
        """The text of all parts; the refusal where an answer has no content."""
        if self.content is None:
            return self.refusal or ""
        if isinstance(self.content, str):
            return self.content
        return "".join(part.text for part in self.content if not isinstance(part, ImagePart))


class ChatRequest(_Generation):
    """POST /v1/chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=4096)]
    max_tokens: int | None = Field(None, ge=1, le=10_000_000)
    max_completion_tokens: int | None = Field(None, ge=1, le=10_000_000)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = Field(
        None, description="Continue the last message, which must be the assistant's (a prefill)."
    )
    # Fields of OpenAI's that are ignored:
    metadata: dict[str, Text] | None = Field(None, max_length=64)
    safety_identifier: Text | None = None
    prompt_cache_key: Text | None = None
    prompt_cache_options: dict[str, Any] | None = None
    prompt_cache_retention: Text | None = None
    parallel_tool_calls: bool | None = None
    # Fields of OpenAI's that are not supported, and would change the answer:
    tools: Annotated[Any, Neutral(_NO_TOOLS, [])] = None
    tool_choice: Annotated[Any, Neutral(_NO_TOOLS, "none", "auto")] = None
    functions: Annotated[Any, Neutral(_NO_TOOLS, [])] = None
    function_call: Annotated[Any, Neutral(_NO_TOOLS, "none", "auto")] = None
    response_format: Annotated[Any, Neutral(_TEXT_ALONE, {"type": "text"})] = None
    modalities: Annotated[Any, Neutral(_TEXT_ALONE, ["text"])] = None
    audio: Annotated[Any, Neutral(_TEXT_ALONE)] = None
    prediction: Annotated[Any, Neutral("this server does not use predicted answers")] = None
    store: Annotated[Any, Neutral("this server does not store answers", False)] = None
    service_tier: Annotated[Any, Neutral("this server has one tier of service", "auto", "default")] = None
    moderation: Annotated[Any, Neutral("this server does not call a moderation model")] = None
    web_search_options: Annotated[Any, Neutral("this server does not search the web")] = None
    verbosity: Annotated[Any, Neutral("this server's model has no such setting", "medium")] = None
    reasoning_effort: Annotated[
        Any, Neutral("this server does not steer how long a model reasons", "none")
    ] = None


class CompletionRequest(_Generation):
    """POST /v1/completions."""

    prompt: Annotated[
        Annotated[Text, Tag("<text>")]
        | Annotated[list[Text], Field(min_length=1, max_length=1024), Tag("<texts>")]
        | Annotated[Tokens, Tag("<tokens>")]
        | Annotated[list[Tokens], Field(min_length=1, max_length=1024), Tag("<lists of tokens>")],
        _one_of(_kind_of_prompt, "a text, a list of texts, or token ids"),
    ]
    max_tokens: int | None = Field(None, ge=0, le=10_000_000)
    echo: bool | None = None
    logprobs: int | None = Field(None, ge=0, le=20)
    best_of: Annotated[Any, Neutral("this server generates no more answers than it returns; use n", 1)] = None
    suffix: Annotated[Any, Neutral("this server does not fill in between two texts", "")] = None


class GateReportBody(BaseModel):
    """The gate's decision. `score` is null where it is not finite, which opens the gate."""

    open: bool
    score: float | None
    layer: int
    strength: float
    action: Literal["none", "steered", "shadow", "refused", "overridden"]
    aligner: str
    opened_at: int | None = Field(None, description="The token at which a monitor opened the answer.")


class Usage(BaseModel):
    """Token counts of a whole request."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class Answer(BaseModel):
    """A response of either endpoint. `inferaligner` is a list for a request with several prompts."""

    model_config = ConfigDict(extra="allow")

    id: str
    object: Literal["chat.completion", "text_completion"]
    created: int
    model: str
    choices: list[dict[str, Any]]
    usage: Usage
    inferaligner: GateReportBody | list[GateReportBody]


class ErrorFields(BaseModel):
    """An error in OpenAI's format."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """A response with an error."""

    error: ErrorFields


class ModelCard(BaseModel):
    """A model in GET /v1/models."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "inferaligner"
    max_model_len: int | None = None


class ModelList(BaseModel):
    """GET /v1/models."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


class Health(BaseModel):
    """GET /health."""

    status: Literal["ok"]
    running: int
    waiting: int
