"""The routes that describe the served model, in OpenAI's and in Aleph Alpha's formats."""

from typing import Annotated

import msgspec
from fastapi import APIRouter, Path, Response
from fastapi.responses import FileResponse

from app.gateway import Gateway, GatewayDep
from app.http.openapi import describe
from app.schemas.models import AvailableModel, ModelCard, ModelDetails, ModelList, ModelSetting
from app.text.generation_request import check_model

router = APIRouter(tags=["models"])

ModelName = Annotated[str, Path(description="The name of the served model, as `GET /models` lists it.")]


@router.get("/models", **describe(answer=ModelList))
async def list_models(gateway: GatewayDep) -> Response:
    """Lists the models in OpenAI's format. The list has one entry: the server serves one model.

    Returns 401 `UNAUTHORIZED` without a valid access token.
    """
    return _json(ModelList(data=[_card(gateway)]))


@router.get("/models/{model:path}/tokenizer", **describe(answer=dict, errors=(401, 404, 500)))
async def read_tokenizer(gateway: GatewayDep, model: ModelName) -> Response:
    """Returns the model's `tokenizer.json` unchanged, for use with Hugging Face's `tokenizers` library.

    Returns 404 `UNKNOWN_MODEL` for any other model, and 401 `UNAUTHORIZED` without a valid access token.
    """
    check_model(model, gateway.settings.model.name)
    return FileResponse(gateway.tokenizer.file, media_type="application/json")


@router.get("/models/{model:path}", **describe(answer=ModelDetails, errors=(401, 404, 500)))
async def read_model(gateway: GatewayDep, model: ModelName) -> Response:
    """Returns one model in OpenAI's format: the entry in `GET /models`, and the tokens that end an answer.

    Returns 404 `UNKNOWN_MODEL` for any other model, and 401 `UNAUTHORIZED` without a valid access token.
    """
    check_model(model, gateway.settings.model.name)
    details = ModelDetails(**msgspec.structs.asdict(_card(gateway)), end_tokens=gateway.end_tokens)
    return _json(details)


@router.get("/models_available", **describe(answer=list[AvailableModel]))
async def list_available_models(gateway: GatewayDep) -> Response:
    """Lists the models in the format of Aleph Alpha's `/models_available`. The list has one entry.

    Returns 401 `UNAUTHORIZED` without a valid access token.
    """
    settings = gateway.settings.model
    model = AvailableModel(
        name=settings.name,
        description=settings.description,
        max_context_size=gateway.engine.model.context_length,
        hostings=[],
        image_support=False,
        qa_support=False,
        summarization_support=False,
        embedding_types=[],
        maximum_completion_tokens=gateway.engine.model.context_length,
        aligned=gateway.prompts is not None,
    )
    return _json([model])


@router.get("/model-settings", **describe(answer=list[ModelSetting]))
async def list_model_settings(gateway: GatewayDep) -> Response:
    """Lists what each model can do, in the format of Aleph Alpha's `/model-settings`. The list has one entry.

    `chat` is true if the model has a chat template. The older tasks (completion, embeddings) are not offered.
    `status` is `unavailable` while the engine is down. Returns 401 `UNAUTHORIZED` without a valid access
    token.
    """
    settings = gateway.settings.model
    model = ModelSetting(
        name=settings.name,
        status="available" if gateway.engine.available else "unavailable",
        description=settings.description,
        multimodal=False,
        max_context_size=gateway.engine.model.context_length,
        semantic_embedding=False,
        completion_type="none",
        embedding_type=None,
        aligned=gateway.prompts is not None,
        chat=gateway.prompts is not None,
        prompt_template=None,
        maximum_completion_tokens=gateway.engine.model.context_length,
        worker_type="tiller",
    )
    return _json([model])


def _card(gateway: Gateway) -> ModelCard:
    return ModelCard(id=gateway.settings.model.name, created=gateway.started, owned_by="tiller")


def _json(content: object) -> Response:
    return Response(msgspec.json.encode(content), media_type="application/json")
