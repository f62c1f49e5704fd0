"""All routes, and the route that a path belongs to. For logs of requests that never reach a router."""

from starlette.routing import BaseRoute, Match

from app.http.auth import unversioned
from app.routes import chat, concepts, docs, models, operations, tokenization

ROUTERS = tuple(module.router for module in (chat, concepts, models, tokenization, operations, docs))


def route_of(method: str, path: str) -> str:
    """The pattern of the route for this path, such as `/models/{model:path}`, without the prefix /v1.

    A route that does not allow the method counts only if there is no other. Without any route: "other".
    """
    scope = {"type": "http", "method": method, "path": unversioned(path)}
    matches = [(route.matches(scope)[0], route) for router in ROUTERS for route in router.routes]
    found = [_pattern(route) for match, route in matches if match is Match.FULL]
    found += [_pattern(route) for match, route in matches if match is Match.PARTIAL]
    return found[0] if found else "other"


def _pattern(route: BaseRoute) -> str:
    return str(getattr(route, "path", "other"))
