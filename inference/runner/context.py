"""How many tokens a sequence can have, and what limits them."""

import logging

from inference.interface.config import ConfigError, EngineConfig
from inference.models.causal_lm import CausalLM

_log = logging.getLogger("tiller.worker")


def context_limit(model: CausalLM, config: EngineConfig, num_blocks: int) -> tuple[int, str]:
    """The limit for a sequence in tokens, and the setting that sets it. "": the model's own limit.

    Each token has a slot in the KV cache. The last one needs it only if its activations are read. Raises
    ConfigError if the configured limit exceeds the model's.
    """
    own, configured = model.context_length, config.context_length
    if own and configured and configured > own:
        raise ConfigError(f"engine.context_length is {configured}, but the model's own limit is {own} tokens")
    wanted = configured or own
    cached = num_blocks * config.block_size
    if wanted is None or cached < wanted:
        _warn_of_cache(cached, wanted, own, cache_setting(config))
        return cached, cache_setting(config)
    return wanted, "engine.context_length" if configured and configured != own else ""


def cache_setting(config: EngineConfig) -> str:
    """The setting of the KV cache's size."""
    return "engine.kv_cache_gib" if config.kv_cache_share is None else "engine.kv_cache_share"


def _warn_of_cache(cached: int, wanted: int | None, own: int | None, setting: str) -> None:
    intended = "the model has no limit of its own"
    if wanted is not None:
        intended = f"{'the model' if wanted == own else 'engine.context_length'} allows {wanted}"
    _log.warning(
        "the KV cache limits the context to %d tokens; %s; a larger %s raises this limit",
        cached,
        intended,
        setting,
    )
