"""The routes that describe the served model, in OpenAI's and in Aleph Alpha's formats."""

from typing import Annotated

import msgspec
from fastapi import APIRouter, Path, Request, Response
from fastapi.responses import FileResponse

from app.gateway import GatewayDep
from app.http.auth import caller_of
from app.http.openapi import describe
from app.models.model import Model
from app.schemas.models import AvailableModel, ModelCard, ModelDetails, ModelList, ModelSetting

router = APIRouter(tags=["models"])

ModelName = Annotated[str, Path(description="The name of a served model, as `GET /models` lists it.")]


@router.get("/models", **describe(answer=ModelList))
async def list_models(request: Request, gateway: GatewayDep) -> Response:
    """Lists the models in OpenAI's format: those that are loaded and that the access token permits.

    Returns 401 `UNAUTHORIZED` without a valid access token.
    """
    return _json(ModelList(data=[_card(model) for model in gateway.models.permitted(caller_of(request))]))


@router.get("/models/{model:path}/tokenizer", **describe(answer=dict, errors=(401, 404, 500)))
async def read_tokenizer(request: Request, gateway: GatewayDep, model: ModelName) -> Response:
    """Returns the model's `tokenizer.json` unchanged, for use with Hugging Face's `tokenizers` library.

    Returns 404 `UNKNOWN_MODEL` if there is no such model, 401 `UNAUTHORIZED` without a valid access token.
    """
    found = gateway.models.find(model, caller_of(request))
    return FileResponse(found.tokenizer.file, media_type="application/json")


@router.get("/models/{model:path}", **describe(answer=ModelDetails, errors=(401, 404, 500)))
async def read_model(request: Request, gateway: GatewayDep, model: ModelName) -> Response:
    """Returns one model in OpenAI's format: the entry in `GET /models`, and the tokens that end an answer.

    Returns 404 `UNKNOWN_MODEL` if there is no such model, 401 `UNAUTHORIZED` without a valid access token.
    """
    found = gateway.models.find(model, caller_of(request))
    details = ModelDetails(**msgspec.structs.asdict(_card(found)), end_tokens=found.end_tokens)
    return _json(details)


@router.get("/models_available", **describe(answer=list[AvailableModel]))
async def list_available_models(request: Request, gateway: GatewayDep) -> Response:
    """Lists the models in the format of Aleph Alpha's `/models_available`.

    Returns 401 `UNAUTHORIZED` without a valid access token.
    """
    return _json([_available(model) for model in gateway.models.permitted(caller_of(request))])


@router.get("/model-settings", **describe(answer=list[ModelSetting]))
async def list_model_settings(request: Request, gateway: GatewayDep) -> Response:
    """Lists what each model can do, in the format of Aleph Alpha's `/model-settings`.

    `chat` is true if the model has a chat template. The older tasks (completion, embeddings) are not offered.
    `status` is `unavailable` while its engine is down. Returns 401 `UNAUTHORIZED` without a valid access
    token.
    """
    return _json([_setting(model) for model in gateway.models.permitted(caller_of(request))])


def _card(model: Model) -> ModelCard:
    return ModelCard(id=model.name, created=model.loaded, owned_by="tiller")


def _available(model: Model) -> AvailableModel:
    return AvailableModel(
        name=model.name,
        description=model.settings.description,
        max_context_size=model.engine.model.context_length,
        hostings=[],
        image_support=False,
        qa_support=False,
        summarization_support=False,
        embedding_types=[],
        maximum_completion_tokens=model.engine.model.context_length,
        aligned=model.prompts is not None,
    )


def _setting(model: Model) -> ModelSetting:
    return ModelSetting(
        name=model.name,
        status="available" if model.engine.available else "unavailable",
        description=model.settings.description,
        multimodal=False,
        max_context_size=model.engine.model.context_length,
        semantic_embedding=False,
        completion_type="none",
        embedding_type=None,
        aligned=model.prompts is not None,
        chat=model.prompts is not None,
        prompt_template=None,
        maximum_completion_tokens=model.engine.model.context_length,
        worker_type="tiller",
    )


def _json(content: object) -> Response:
    return Response(msgspec.json.encode(content), media_type="application/json")
