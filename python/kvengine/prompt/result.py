"""What prompt compression returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class CompressedPrompt:
    """A shortened prompt.

    tokens: what a session reads, from position 0 on.
    text: the same as text, special tokens spelled out.
    original_tokens: how many there were.
    method: its canonical spec.
    kept: [len(tokens)] their indices among the original tokens, ascending; None where the method
        does not take whole tokens of the model.
    information: [original_tokens] -ln p of each token in nats, NaN where none was measured; None
        where the method measures something else.
    """

    tokens: list[int]
    text: str
    original_tokens: int
    method: str
    kept: NDArray[np.int64] | None = None
    information: NDArray[np.float64] | None = None

    def as_dict(self) -> dict[str, Any]:
        """What commands print as JSON."""
        return {
            "method": self.method,
            "tokens_before": self.original_tokens,
            "tokens_after": len(self.tokens),
        }
