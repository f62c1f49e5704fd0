"""Tokens to text, one token after the other, exactly as `tokenizers` decodes all of them at once."""
