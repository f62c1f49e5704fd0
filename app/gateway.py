"""The objects that the routes use. create_app builds them once. Has no behaviour of its own."""

import hashlib
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from app import __version__
from app.concepts.readings import TextEncoder
from app.concepts.registry import Concepts
from app.limits.admission import AdmissionController
from app.schemas.models import EndToken
from app.settings import Settings
from app.telemetry.metrics import Metrics
from app.text.prompts import PromptRenderer
from app.text.tokenizer import Tokenizer
from app.workers.engine import Engine
from inference.interface.protocol import ModelInfo


@dataclass(frozen=True)
class Gateway:
    settings: Settings
    engine: Engine
    admission: AdmissionController
    tokenizer: Tokenizer
    prompts: PromptRenderer | None
    """None if the model has no chat template, so that it cannot chat."""
    end_tokens: list[EndToken]
    """The tokens that end an answer."""
    concepts: Concepts
    texts_to_read: TextEncoder
    metrics: Metrics
    system_fingerprint: str
    started: int
    """When the gateway was built, in seconds since 1970."""

    @property
    def end_token_ids(self) -> tuple[int, ...]:
        return tuple(token.id for token in self.end_tokens)


def fingerprint(model: ModelInfo) -> str:
    """The `system_fingerprint`. It depends on the weights, the dtype and the server's version only."""
    identity = "\n".join((model.weights_digest, model.dtype, __version__))
    return "fp_" + hashlib.sha256(identity.encode()).hexdigest()[:12]


# `async`, because FastAPI would run a plain function in a thread, which costs more than most routes.
async def _gateway(request: Request) -> Gateway:
    gateway: Gateway = request.app.state.gateway
    return gateway


GatewayDep = Annotated[Gateway, Depends(_gateway)]
