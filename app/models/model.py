"""One served model, and all that answers for it. Has no behaviour of its own."""

import hashlib
from dataclasses import dataclass
from functools import cached_property

from app import __version__
from app.concepts.readings import TextEncoder
from app.concepts.steerable import SteerableModel
from app.schemas.models import EndToken
from app.settings import ServedModelSettings
from app.text.prompts import PromptRenderer
from app.text.tokenizer import Tokenizer
from app.workers.engine import Engine
from inference.interface.protocol import ModelInfo


@dataclass(frozen=True)
class Model:
    settings: ServedModelSettings
    engine: Engine
    tokenizer: Tokenizer
    prompts: PromptRenderer | None
    """None if the model has no chat template, so that it cannot chat."""
    end_tokens: list[EndToken]
    """The tokens that end an answer."""
    steering: SteerableModel
    texts_to_read: TextEncoder
    loaded: int
    """When the model was loaded, in seconds since 1970."""

    @property
    def name(self) -> str:
        return self.settings.name

    @cached_property
    def end_token_ids(self) -> tuple[int, ...]:
        return tuple(token.id for token in self.end_tokens)

    @cached_property
    def system_fingerprint(self) -> str:
        return fingerprint(self.engine.model)


def fingerprint(model: ModelInfo) -> str:
    """The `system_fingerprint`. It depends only on weights, dtype, quantization and the server's version."""
    identity = "\n".join((model.weights_digest, model.dtype, model.quantization, __version__))
    return "fp_" + hashlib.sha256(identity.encode()).hexdigest()[:12]
