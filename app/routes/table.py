"""All routes, and the route that a path belongs to. For logs of requests that never reach a router."""

from starlette.routing import BaseRoute, Match

from app.http.auth import unversioned
from app.routes import (
    chat,
    concept_readings,
    concept_vectors,
    concepts,
    docs,
    models,
    operations,
    playground,
    tokenization,
)

ROUTERS = tuple(
    module.router
    for module in (
        *(chat, concept_readings, concept_vectors, concepts),
        *(models, tokenization, operations, docs, playground),
    )
)
"""In the order in which paths are matched: any path of concepts matches the routes in `concepts`."""


def route_of(method: str, path: str) -> str:
    """The pattern of the route for this path, such as `/models/{model:path}`, without the prefix /v1.

    A route that does not allow the method counts only if there is no other. Without any route: "other".
    """
    scope = {"type": "http", "method": method, "path": unversioned(path)}
    matches = [(route.matches(scope)[0], route) for router in ROUTERS for route in router.routes]
    found = [_pattern(route) for match, route in matches if match is Match.FULL]
    found += [_pattern(route) for match, route in matches if match is Match.PARTIAL]
    return found[0] if found else "other"


def methods_of(path: str) -> list[str]:
    """The methods that the path allows: those of the first pattern that it matches."""
    scopes = [
        {"type": "http", "method": method, "path": unversioned(path)} for method in ("GET", "POST", "DELETE")
    ]
    matches = [
        (_pattern(route), scope["method"])
        for router in ROUTERS
        for route in router.routes
        for scope in scopes
        if route.matches(scope)[0] is Match.FULL
    ]
    methods = [method for pattern, method in matches if pattern == matches[0][0]]
    return [*methods, *(["HEAD"] if "GET" in methods else []), "OPTIONS"]


def _pattern(route: BaseRoute) -> str:
    return str(getattr(route, "path", "other"))
