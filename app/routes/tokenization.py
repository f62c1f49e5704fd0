"""POST /tokenize and /detokenize."""

import msgspec
from anyio import to_thread
from fastapi import APIRouter, Request, Response
from msgspec import UNSET

from app.errors import InvalidRequest, shorten
from app.gateway import GatewayDep
from app.http.auth import requires
from app.http.body import read_json
from app.http.openapi import describe
from app.schemas.tokenization import Detokenized, DetokenizeRequest, Tokenized, TokenizeRequest
from app.settings import AccessScope
from app.text.generation_request import check_model

router = APIRouter(tags=["tokens"], dependencies=[requires(AccessScope.CHAT)])


@router.post("/tokenize", **describe(TokenizeRequest, Tokenized, errors=(401, 404, 500)))
async def tokenize(request: Request, gateway: GatewayDep) -> Response:
    """A text's tokens; none are added, and control tokens that are written in the text stay text."""
    asked = await read_json(request, TokenizeRequest)
    check_model(asked.model, gateway.settings.model.name)
    tokens, token_ids = await to_thread.run_sync(gateway.tokenizer.encode_strings, asked.prompt)
    answer = Tokenized(tokens if asked.tokens else UNSET, token_ids if asked.token_ids else UNSET)
    return Response(msgspec.json.encode(answer), media_type="application/json")


@router.post("/detokenize", **describe(DetokenizeRequest, Detokenized, errors=(401, 404, 500)))
async def detokenize(request: Request, gateway: GatewayDep) -> Response:
    """The text of tokens; control tokens are shown by name."""
    asked = await read_json(request, DetokenizeRequest)
    check_model(asked.model, gateway.settings.model.name)
    _check_token_ids(asked.token_ids, gateway.tokenizer.size)
    answer = Detokenized(await to_thread.run_sync(gateway.tokenizer.decode, asked.token_ids))
    return Response(msgspec.json.encode(answer), media_type="application/json")


def _check_token_ids(token_ids: list[int], size: int) -> None:
    if max(token_ids, default=0) >= size:
        position = next(position for position, token_id in enumerate(token_ids) if token_id >= size)
        path = f"token_ids[{position}]"
        raise InvalidRequest(f"{path} must be less than {size}, got {shorten(token_ids[position])}", path)
