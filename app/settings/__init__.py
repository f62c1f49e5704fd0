"""The gateway's settings: names, types, defaults and rules. Frozen. Does not read files or variables."""

from app.settings.access import AccessScope, AccessToken, AuthSettings, NamedAccessToken
from app.settings.cluster import ClusterSettings, ScaleSettings
from app.settings.limits import ApiSettings, LimitSettings
from app.settings.model import EngineSettings, ModelSettings, ServedModelSettings
from app.settings.section import Section
from app.settings.server import ServerSettings, TlsSettings
from app.settings.settings import ENVIRONMENT_PREFIX, Settings
from app.settings.steering import SteeringSettings
from app.settings.telemetry import LogSettings, TracingSettings

__all__ = [
    "ENVIRONMENT_PREFIX",
    "AccessScope",
    "AccessToken",
    "ApiSettings",
    "AuthSettings",
    "ClusterSettings",
    "EngineSettings",
    "LimitSettings",
    "LogSettings",
    "ModelSettings",
    "NamedAccessToken",
    "ScaleSettings",
    "Section",
    "ServedModelSettings",
    "ServerSettings",
    "Settings",
    "SteeringSettings",
    "TlsSettings",
    "TracingSettings",
]
