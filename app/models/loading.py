"""Builds a model from an engine that has started. Can take seconds."""

import logging
import time
from functools import partial
from pathlib import Path

from app.concepts.examples import ExampleEncoder
from app.concepts.readings import TextEncoder
from app.concepts.reports import present
from app.concepts.steerable import SteerableModel
from app.concepts.texts import ConceptTexts
from app.concepts.trainings import Trainings
from app.concepts.vectors.imported import ServedModel
from app.models.model import Model
from app.schemas.models import EndToken
from app.settings import ServedModelSettings, Settings
from app.telemetry.metrics import Metrics
from app.text.end_tokens import find_end_tokens
from app.text.prompts import load_text
from app.text.vocabulary import check_vocabulary
from app.workers.engine import Engine

_log = logging.getLogger(__name__)


def load_model(settings: Settings, model: ServedModelSettings, engine: Engine, metrics: Metrics) -> Model:
    """Loads the tokenizer and the chat template from `engine.model.directory`.

    Raises StartError if they cannot be used.
    """
    info = engine.model
    tokenizer, prompts = load_text(Path(info.directory), model.chat_template_file)
    check_vocabulary(tokenizer, prompts, info.vocab_size)
    end_tokens = find_end_tokens(info.end_token_ids, tokenizer, prompts, info.vocab_size)
    _log_facts(model.name, end_tokens, prompts is not None)
    texts = ConceptTexts(tokenizer, prompts, info.vocab_size)
    return Model(
        settings=model,
        engine=engine,
        tokenizer=tokenizer,
        prompts=prompts,
        end_tokens=end_tokens,
        steering=_steerable(settings, model.name, engine, texts, end_tokens, metrics),
        texts_to_read=TextEncoder(texts, info.context_length, settings.limits.max_concept_tokens),
        loaded=int(time.time()),
    )


def _log_facts(name: str, end_tokens: list[EndToken], can_chat: bool) -> None:
    if not can_chat:
        _log.warning("model %(model)s has no chat template, so it cannot chat", {"model": name})
    if end_tokens:
        listed = "; ".join(f"{token.id} {token.token} ({', '.join(token.sources)})" for token in end_tokens)
        _log.info("answers of %(model)s end at %(tokens)s", {"model": name, "tokens": listed})
    else:
        message = "model %(model)s names no end token, so answers end only at max_tokens or a stop sequence"
        _log.warning(message, {"model": name})


def _steerable(
    settings: Settings,
    name: str,
    engine: Engine,
    texts: ConceptTexts,
    end_tokens: list[EndToken],
    metrics: Metrics,
) -> SteerableModel:
    identity = ServedModel.of(name, engine.model)
    encoder = ExampleEncoder(
        texts,
        identity,
        engine.model.context_length,
        settings.limits.max_concept_tokens,
        tuple(token.id for token in end_tokens),
        settings.steering.questions,
    )
    trainings = Trainings(name, engine, encoder.encode, metrics, encoder.refusal)
    return SteerableModel(identity, trainings, partial(present, tokenizer=texts.tokenizer))
