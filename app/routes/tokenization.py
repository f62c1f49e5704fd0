"""POST /tokenize and POST /detokenize."""

import msgspec
from anyio import to_thread
from fastapi import APIRouter, Request, Response
from msgspec import UNSET

from app.errors import InvalidRequest, shorten
from app.gateway import GatewayDep
from app.http.auth import caller_of, requires
from app.http.body import read_json
from app.http.openapi import describe
from app.schemas.tokenization import Detokenized, DetokenizeRequest, Tokenized, TokenizeRequest
from app.settings import AccessScope

router = APIRouter(tags=["tokens"], dependencies=[requires(AccessScope.CHAT)])


@router.post("/tokenize", **describe(TokenizeRequest, Tokenized, errors=(401, 404, 500)))
async def tokenize(request: Request, gateway: GatewayDep) -> Response:
    """Splits a text into tokens. Returns `tokens` and `token_ids`, each only if the request sets it to true.

    No special tokens are added. The name of a control token in the text is read as ordinary text.

    Errors: 400 `INVALID_REQUEST` if a field breaks a rule, 404 `UNKNOWN_MODEL`, and
    401 `UNAUTHORIZED` without a valid access token that has the scope `chat`.
    """
    wanted = await read_json(request, TokenizeRequest)
    model = gateway.models.find(wanted.model, caller_of(request))
    tokens, token_ids = await to_thread.run_sync(model.tokenizer.encode_strings, wanted.prompt)
    answer = Tokenized(tokens if wanted.tokens else UNSET, token_ids if wanted.token_ids else UNSET)
    return Response(msgspec.json.encode(answer), media_type="application/json")


@router.post("/detokenize", **describe(DetokenizeRequest, Detokenized, errors=(401, 404, 500)))
async def detokenize(request: Request, gateway: GatewayDep) -> Response:
    """Joins tokens into a text. Control tokens appear in the text by name.

    Errors: 400 `INVALID_REQUEST` if a token id is outside the vocabulary or a field breaks another rule,
    404 `UNKNOWN_MODEL`, and 401 `UNAUTHORIZED` without a valid access token that has the
    scope `chat`.
    """
    wanted = await read_json(request, DetokenizeRequest)
    model = gateway.models.find(wanted.model, caller_of(request))
    _check_token_ids(wanted.token_ids, model.tokenizer.size)
    answer = Detokenized(await to_thread.run_sync(model.tokenizer.decode, wanted.token_ids))
    return Response(msgspec.json.encode(answer), media_type="application/json")


def _check_token_ids(token_ids: list[int], size: int) -> None:
    if max(token_ids, default=0) >= size:
        position = next(position for position, token_id in enumerate(token_ids) if token_id >= size)
        path = f"token_ids[{position}]"
        raise InvalidRequest(f"{path} must be less than {size}, got {shorten(token_ids[position])}", path)
