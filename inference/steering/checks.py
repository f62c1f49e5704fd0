"""Checks a command to train before anything is computed."""

import itertools

from inference.interface.concepts import TrainConcept


def find_fault(command: TrainConcept, vocab_size: int, max_tokens: int) -> str | None:
    """What is wrong with the command, or None. A wrong command would end every request in the batch.

    `max_tokens`: limit for a prompt and a text together.
    """
    prompts = [command.prompt_token_ids, *command.pair_prompts, *command.questions]
    texts = [*command.positive, *command.negative, *command.neutral]
    ids = itertools.chain(*prompts, *texts)
    if not len(command.positive) == len(command.negative) == len(command.pair_prompts):
        return "there must be as many positive as negative texts and prompts"
    if not all((command.positive or command.vectors, command.neutral, *prompts, *texts)):
        return "the prompts, the examples and the neutral texts must not be empty"
    if command.groups and len(command.groups) != len(command.positive):
        return "there must be a group for each pair"
    if min(command.groups, default=0) < 0:
        return "the number of a group must not be negative"
    if not all(0 <= token_id < vocab_size for token_id in ids):
        return "a token id is not in the model's vocabulary"
    if _longest(command) > max_tokens:
        return f"a prompt and its text together must have at most {max_tokens} tokens"
    return None


def _longest(command: TrainConcept) -> int:
    """The largest number of tokens of a prompt with its text."""
    pairs = zip(command.pair_prompts, command.positive, command.negative, strict=True)
    in_pairs = (len(prompt) + max(len(one), len(other)) for prompt, one, other in pairs)
    neutral = len(command.prompt_token_ids) + max(map(len, command.neutral))
    return max([neutral, *in_pairs, *map(len, command.questions)])
