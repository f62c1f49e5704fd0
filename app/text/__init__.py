"""Text and tokens: tokenizer, chat template, detokenizer, answers. Imports no web framework and no torch."""
