"""What chat requests may contain, and how much of everything there may be."""

from app.settings.section import PositiveFloat, PositiveInt, Section


class ApiSettings(Section):
    """How strictly chat requests are checked."""

    strict: bool = True
    """True: the rules of Aleph Alpha's API. False: accepts what agent frameworks send. Neighbours of the same
    role are merged, `developer` is read as `system`, an `assistant` message may come first, and unsupported
    fields may have values that have no effect."""


class LimitSettings(Section):
    """Limits for requests. EngineSettings has the capacity of the engine."""

    max_n: PositiveInt = 16
    """Maximum `n` of a chat request."""
    max_messages: PositiveInt = 4096
    """Maximum number of messages in a chat request."""
    max_logit_bias: PositiveInt = 1024
    """Maximum number of entries in the logit_bias of a chat request."""
    default_max_tokens: PositiveInt | None = None
    """`max_tokens` of a chat request that sets none. If the context leaves less, then that. None: as many as
    the context leaves."""
    max_wait_seconds: PositiveFloat = 300.0
    """Seconds that a chat request may wait in the engine for its first token."""
    max_requests: PositiveInt | None = None
    """Maximum number of concurrent chats and concept creations of one access token. None: no limit."""
    tokens_per_minute: PositiveInt | None = None
    """Maximum number of prompt and answer tokens of one access token per minute. None: no limit."""
    max_examples: PositiveInt = 1000
    """Maximum number of contrastive pairs in a steering concept."""
    max_example_characters: PositiveInt = 4000
    """Maximum length of each text in a pair, in characters."""
    max_concept_tokens: PositiveInt = 131_072
    """Maximum number of tokens in all texts of a concept together."""
    max_vector_bytes: PositiveInt = 64 * 2**20
    """Maximum size of a file with steering vectors that is imported, in bytes."""
    max_read_texts: PositiveInt = 256
    """Maximum number of texts that one request may read a concept's presence in."""
    max_trainings: PositiveInt = 64
    """Maximum number of concepts in creation at the same time, of all callers together."""
    max_concepts: PositiveInt = 1000
    """Maximum number of created concepts, of all callers together. Shipped concepts do not count."""
