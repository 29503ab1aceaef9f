"""What the caller is told of a sequence's new tokens."""

from tokenworks.engine.plan import StepResult
from tokenworks.engine.sequence import Sequence
from tokenworks.protocol.messages import Finish, TokenChunk


def chunk_of(sequence: Sequence, made: list[int], result: StepResult, index: int) -> TokenChunk:
    """Of a sequence that has just got the tokens `made`, by piece number `index` of a step; with its ending if they are
    the last."""
    request = sequence.request
    finish: Finish | None = None
    stop_token_id: int | None = None
    token_ids: tuple[int, ...] = ()
    if request.sampling.max_tokens:
        token_ids = tuple(made)
        token = made[-1]
        if index in result.complete or (token in sequence.ends and sequence.output_tokens >= sequence.min_tokens):
            finish = Finish.STOP
            stop_token_id = token if token in sequence.ends else None
    if finish is None and len(sequence.tokens) >= sequence.longest:
        finish = Finish.LENGTH
    logprobs = tuple(result.logprobs.get(index, ()))
    if not sequence.first_chunk_due:
        return TokenChunk(
            request.request_id,
            token_ids,
            logprobs,
            finish=finish,
            stop_token_id=stop_token_id,
        )
    sequence.first_chunk_due = False
    prompt_logprobs = tuple(sequence.prompt_logprobs)
    sequence.prompt_logprobs, sequence.prompt_logprobs_due = [], False
    return TokenChunk(
        request.request_id,
        token_ids,
        logprobs,
        prompt_logprobs,
        sequence.cached_tokens or 0,
        finish,
        stop_token_id,
    )
