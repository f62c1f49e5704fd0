"""Values with which the chart is tested."""

import pytest

from tests.kubernetes.helm import TOKENS, VALUES, Manifest

OPENSHIFT = dict.fromkeys(("runAsUser", "runAsGroup", "fsGroup"))
EVERYTHING: Manifest = {
    "image": {"repository": "registry.example/tiller", "tag": "1.20.0-cuda"},
    "imagePullSecrets": [{"name": "registry"}],
    "config": {"model": {"name": "big", "source": "/models/big"}, "engine": {"dtype": "bfloat16"}},
    "auth": {"existingSecret": "callers"},
    "huggingFace": {"existingSecret": "hub"},
    "gpus": 2,
    "runtimeClassName": "nvidia",
    "resources": {},
    "persistence": {"cache": {"storageClass": "fast"}, "data": {"existingClaim": "concepts"}},
    "service": {"type": "LoadBalancer", "port": 443, "annotations": {"a": "b"}},
    "tls": {"secretName": "certificate"},
    "metrics": {
        "serviceMonitor": {
            "enabled": True,
            "labels": {"release": "prometheus"},
            "tokenSecret": {"name": "scraper"},
            "tlsConfig": {"insecureSkipVerify": True},
        }
    },
    "podSecurityContext": OPENSHIFT,
    "extraEnv": [{"name": "HF_HUB_OFFLINE", "value": "1"}],
    "extraVolumes": [{"name": "models", "persistentVolumeClaim": {"claimName": "models"}}],
    "extraVolumeMounts": [{"name": "models", "mountPath": "/models", "readOnly": True}],
    "podAnnotations": {"c": "d"},
    "podLabels": {"e": "f"},
    "nodeSelector": {"gpu": "h100"},
    "tolerations": [{"key": "dedicated", "operator": "Exists"}],
    "affinity": {"nodeAffinity": {}},
    "priorityClassName": "high",
}
CASES = {
    "the least": TOKENS,
    **{name: {**values, **TOKENS} for name, values in VALUES.items()},
    "everything": EVERYTHING,
    "no volumes": {**TOKENS, "persistence": {name: {"enabled": False} for name in ("cache", "data")}},
}
each_case = pytest.mark.parametrize(
    "values", [pytest.param(values, id=name) for name, values in CASES.items()]
)
