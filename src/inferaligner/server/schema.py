"""Requests and answers, field by field; FastAPI makes the OpenAPI description from them.

What is not described here is refused with status 400 and the field's name: a misspelt option that is silently
ignored would be a bug for whoever sent it. Fields of OpenAI's that this server cannot honour are taken with
their neutral value alone.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field


def _whole(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("not valid Unicode (half of a surrogate pair)") from None
    return text


Text = Annotated[str, AfterValidator(_whole)]
Stop = Annotated[Text, Field(min_length=1, max_length=200)]
Count = Annotated[int, Field(ge=0, le=10_000_000)]
Token = Annotated[int, Field(ge=0, le=10_000_000)]


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class StreamOptions(_Request):
    """`include_usage`: one more chunk with token counts before the end."""

    include_usage: bool | None = None
    include_obfuscation: Literal[False] | None = None


class GateOptions(_Request):
    """What only this server understands.

    `strength` replaces the aligner's α for this request (0: the bare model), where the operator allows that;
    `trace` adds the monitor's running score to the chunks of a stream.
    """

    strength: float | None = Field(None, ge=0, le=1000, allow_inf_nan=False)
    trace: bool | None = None


class _Generation(_Request):
    model: Text | None = Field(None, description="As in GET /v1/models; may be left out.")
    n: int | None = Field(None, ge=1, le=128)
    seed: int | None = Field(None, ge=-(2**63), le=2**63 - 1)
    temperature: float | None = Field(None, ge=0, le=2, allow_inf_nan=False)
    top_p: float | None = Field(None, ge=0, le=1, allow_inf_nan=False)
    top_k: int | None = Field(None, ge=-1, le=10_000_000, description="-1 or 0: no limit.")
    presence_penalty: float | None = Field(None, ge=-2, le=2, allow_inf_nan=False)
    frequency_penalty: float | None = Field(None, ge=-2, le=2, allow_inf_nan=False)
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = Field(None, max_length=1024)
    stop: Stop | Annotated[list[Stop], Field(max_length=16)] | None = None
    stop_token_ids: Annotated[list[Token], Field(max_length=64)] | None = None
    ignore_eos: bool | None = None
    min_tokens: Count | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: Text | None = None
    inferaligner: GateOptions | None = None


class TextPart(_Request):
    """A piece of a message."""

    type: Literal["text"]
    text: Text


class ImageUrl(_Request):
    """Where an image is: a `data:` URL, or an address that the operator allows."""

    url: Annotated[Text, Field(min_length=1)]
    detail: Literal["auto", "low", "high"] | None = Field(
        None, description="Changes nothing: the model has one way to look."
    )


class ImagePart(_Request):
    """An image in a message of the user, for a model that sees."""

    type: Literal["image_url"]
    image_url: ImageUrl


class Message(_Request):
    """One turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: (
        Text
        | Annotated[
            list[Annotated[TextPart | ImagePart, Field(discriminator="type")]],
            Field(min_length=1, max_length=1024),
        ]
    )
    name: Text | None = None

    @property
    def text(self) -> str:
        """Its text in one piece."""
        if isinstance(self.content, str):
            return self.content
        return "".join(part.text for part in self.content if isinstance(part, TextPart))


class TextFormat(_Request):
    """Plain text, the only format there is."""

    type: Literal["text"]


class ChatRequest(_Generation):
    """POST /v1/chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=4096)]
    max_tokens: int | None = Field(None, ge=1, le=10_000_000)
    max_completion_tokens: int | None = Field(None, ge=1, le=10_000_000)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = Field(
        None, description="Go on with the last message, which is the assistant's (a prefill)."
    )
    # Of OpenAI's, with the one value that changes nothing.
    tools: Annotated[list[Any], Field(max_length=0)] | None = None
    tool_choice: Literal["none", "auto"] | None = None
    parallel_tool_calls: bool | None = None
    response_format: TextFormat | None = None
    modalities: Annotated[list[Literal["text"]], Field(max_length=1)] | None = None
    store: Literal[False] | None = None
    metadata: dict[str, Text] | None = Field(None, max_length=64)
    service_tier: Literal["auto", "default"] | None = None


class CompletionRequest(_Generation):
    """POST /v1/completions."""

    prompt: (
        Text
        | Annotated[list[Text], Field(min_length=1, max_length=1024)]
        | Annotated[list[Token], Field(min_length=1, max_length=1_000_000)]
        | Annotated[
            list[Annotated[list[Token], Field(min_length=1, max_length=1_000_000)]],
            Field(min_length=1, max_length=1024),
        ]
    )
    max_tokens: int | None = Field(None, ge=0, le=10_000_000)
    echo: bool | None = None
    logprobs: int | None = Field(None, ge=0, le=20)
    best_of: Literal[1] | None = None
    suffix: Literal[""] | None = None


class GateReportBody(BaseModel):
    """What the gate said. `score` is null where the model's numbers were not finite, which opens the gate."""

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
    """An answer of either endpoint. `inferaligner` is a list for a request of several prompts."""

    model_config = ConfigDict(extra="allow")

    id: str
    object: Literal["chat.completion", "text_completion"]
    created: int
    model: str
    choices: list[dict[str, Any]]
    usage: Usage
    inferaligner: GateReportBody | list[GateReportBody]


class ErrorFields(BaseModel):
    """What went wrong, in OpenAI's words."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """An answer of any status that is not 200."""

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
