"""Which precision to run a model in, and why: from an audit's figures alone."""

from collections.abc import Sequence

from tokenworks.quant.audit_types import STORED, Candidate

NOISE = 0.10
"""Relative differences in speed up to this are not told apart: shared machines differ more between two runs."""


def recommend(candidates: Sequence[Candidate], max_loss: float) -> tuple[str, dict[str, str]]:
    """The recommended precision, and for each one the reason that it is or is not.

    Of those whose perplexity is at most `max_loss` (a share: 0.02) above the reference's, the fastest at decoding;
    within NOISE of it the one as stored, which costs nothing to make, unless another is smaller by more than NOISE;
    else the smallest. One that loses too much is only recommended when all do, and then it is the least lossy.
    """
    stored = next(each for each in candidates if each.precision == STORED)
    fit = [each for each in candidates if each.loss <= max_loss]
    if not fit:
        best = min(candidates, key=lambda each: each.served.kl)
        first = f"all lose more than {max_loss:.1%} perplexity; this one is closest to the reference"
    else:
        fastest = max(fit, key=lambda each: each.decode_tok_s)
        close = [each for each in fit if each.decode_tok_s >= fastest.decode_tok_s * (1 - NOISE)]
        best = min(close, key=lambda each: (each.weight_bytes, each.served.kl))
        if stored in close and best.weight_bytes >= stored.weight_bytes * (1 - NOISE):
            best = stored
        first = _why(best, stored, max_loss)
    return best.precision, {
        each.precision: first if each is best else _why_not(each, best, max_loss) for each in candidates
    }


def _why(best: Candidate, stored: Candidate, max_loss: float) -> str:
    if best is stored:
        return (
            f"already there, and nothing that keeps within {max_loss:.1%} of the reference's perplexity is more than "
            f"{NOISE:.0%} faster or smaller"
        )
    return (
        f"decodes at {best.decode_tok_s / stored.decode_tok_s:.2f}x the speed of the weights as stored in "
        f"{best.weight_bytes / stored.weight_bytes:.2f}x their memory, for {best.loss:+.2%} perplexity"
    )


def _why_not(each: Candidate, best: Candidate, max_loss: float) -> str:
    if each.loss > max_loss:
        return f"{each.loss:+.2%} perplexity, more than {max_loss:.1%}"
    if each.decode_tok_s < best.decode_tok_s * (1 - NOISE):
        return f"decodes at {each.decode_tok_s / best.decode_tok_s:.2f}x the speed of {best.precision}"
    if each.weight_bytes > best.weight_bytes:
        return f"no faster than {best.precision}, {each.weight_bytes / best.weight_bytes:.2f}x its memory"
    return f"no better than {best.precision} by more than {NOISE:.0%}, which is there already"
