"""One tree of errors, one kind per failure; each says what, whose fault, and the cure.

TokenworksError
├── UserError                 the caller can mend it: HTTP 4xx, or exit status 2 on the command line
│   ├── InvalidRequest        400 invalid_request_error
│   ├── ContextTooLong        400 context_length_exceeded
│   ├── ModelNotFound         404 model_not_found
│   ├── BodyTooLarge          413 request_too_large
│   ├── BodyTooSlow           408 request_timeout
│   ├── ConfigError           a configuration file: file, line, what was expected
│   └── ModelError            a model file or source that cannot be used: which, why, what instead
└── FactoryError              our side: HTTP 5xx
    ├── Overloaded            503 overloaded, try again
    ├── WorkerLost            503 worker_lost, after carrying on elsewhere failed too
    └── EngineError           500 engine_error
"""


class TokenworksError(Exception):
    """Root of the tree. `status` is the HTTP status, `code` the machine-readable code, `param` the field at fault."""

    status = 500
    code = "internal_error"

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param


class UserError(TokenworksError):
    status = 400
    code = "invalid_request_error"


class InvalidRequest(UserError):
    """The request's own words are off."""


class ContextTooLong(UserError):
    """Prompt and asked-for output do not fit the model's context. `max_tokens` is None where none were asked for."""

    code = "context_length_exceeded"

    def __init__(self, prompt_tokens: int, max_tokens: int | None, context_tokens: int, *, param: str) -> None:
        asked, cure = "", "Shorten it."
        if max_tokens is not None:
            asked, cure = f" and max_tokens asks for {max_tokens}", "Shorten the prompt or lower max_tokens."
        elif prompt_tokens == context_tokens:
            asked = ", which leaves no room for output"
        # Clients look for the first words, which are OpenAI's.
        super().__init__(
            f"This model's maximum context length is {context_tokens} tokens; the prompt has {prompt_tokens}{asked}. "
            + cure,
            param=param,
        )


class ModelNotFound(UserError):
    status, code = 404, "model_not_found"

    def __init__(self, name: str, served: list[str]) -> None:
        super().__init__(f"The model {name!r} is not served here. Served: {', '.join(served)}.", param="model")


class BodyTooLarge(UserError):
    status, code = 413, "request_too_large"


class BodyTooSlow(UserError):
    status, code = 408, "request_timeout"


class ConfigError(UserError):
    """A configuration file is wrong; `line` counts from 1, 0 is the file as a whole."""

    code = "config_error"

    def __init__(self, file: str, line: int, message: str) -> None:
        super().__init__(f"{file}:{line}: {message}" if line else f"{file}: {message}")
        self.file, self.line = file, line


class ModelError(UserError):
    """A model source or file that cannot be used."""

    code = "model_error"


class FactoryError(TokenworksError):
    status = 500


class Overloaded(FactoryError):
    status, code = 503, "overloaded"


class WorkerLost(FactoryError):
    status, code = 503, "worker_lost"


class EngineError(FactoryError):
    code = "engine_error"
