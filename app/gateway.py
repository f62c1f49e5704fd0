"""What the routes work with, put together once by create_app. Has no behaviour of its own."""

import hashlib
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from app import __version__
from app.concepts.registry import Concepts
from app.limits.admission import AdmissionController
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
    """None: the model has no chat template and cannot chat."""
    concepts: Concepts
    metrics: Metrics
    system_fingerprint: str
    started: int
    """Seconds since 1970."""


def fingerprint(model: ModelInfo) -> str:
    """Changes with the weights, the dtype and the server's version, and with nothing else."""
    identity = "\n".join((model.weights_digest, model.dtype, __version__))
    return "fp_" + hashlib.sha256(identity.encode()).hexdigest()[:12]


# FastAPI would run a dependency that is not `async` on a thread, which costs more than most routes do.
async def _gateway(request: Request) -> Gateway:
    gateway: Gateway = request.app.state.gateway
    return gateway


GatewayDep = Annotated[Gateway, Depends(_gateway)]
