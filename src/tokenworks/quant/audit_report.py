"""An audit as JSON objects: one for each candidate precision of each model."""

from collections.abc import Sequence
from typing import Any

from tokenworks.quant.audit_types import Audit, Candidate
from tokenworks.quant.measure import Divergence
from tokenworks.quant.tasks import Marks


def as_objects(audits: Sequence[Audit]) -> list[dict[str, Any]]:
    """Perplexities and KL (nats a token) are over `tokens` tokens; bytes are of weights packed in memory."""
    return [_object(audit, candidate) for audit in audits for candidate in audit.candidates]


def _object(audit: Audit, candidate: Candidate) -> dict[str, Any]:
    return {
        "model": audit.model,
        "precision": candidate.precision,
        "weights": candidate.weights,
        "bytes": candidate.weight_bytes,
        **_divergence(candidate.served),
        "prefill_tok_s": round(candidate.prefill_tok_s, 1),
        "decode_tok_s": round(candidate.decode_tok_s, 1),
        "recommended": candidate.precision == audit.recommended,
        "reason": audit.reasons[candidate.precision],
        "caution": candidate.caution,
        "reference_perplexity": round(audit.reference_perplexity, 5),
        "tokens": audit.tokens,
        "weights_only": _divergence(candidate.weights_only),
        "kv_int8": {**_divergence(candidate.kv_int8), "decode_tok_s": round(candidate.kv_int8_decode_tok_s, 1)},
        "kv_bytes_per_token": {"float16": audit.kv_bytes_per_token, "int8": audit.kv_int8_bytes_per_token},
        "tasks": {
            **{kind: _fraction(candidate.marks, kind) for kind in dict.fromkeys(candidate.marks.kinds)},
            "right": round(candidate.marks.right, 4),
            "same_as_reference": round(candidate.same_answers, 4),
            "reference_right": round(audit.reference_marks.right, 4),
        },
        "greedy": {"prompts": audit.prompts, "alike": round(candidate.greedy_alike, 4)},
    }


def _fraction(marks: Marks, kind: str) -> dict[str, int]:
    right, of = marks.right_of(kind)
    return {"right": right, "of": of}


def _divergence(found: Divergence) -> dict[str, float]:
    return {
        "perplexity": round(found.perplexity, 5),
        "kl": round(found.kl, 6),
        "top1_agreement": round(found.top1_agreement, 5),
    }
