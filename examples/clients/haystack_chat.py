"""Haystack. `OpenAIChatGenerator` chats; `OpenAIResponsesChatGenerator` uses /responses.

pip install haystack-ai
python haystack_chat.py
"""

import os

from haystack.components.generators.chat import OpenAIChatGenerator
from haystack.dataclasses import ChatMessage
from haystack.utils import Secret

for strength in (0, -1):
    generator = OpenAIChatGenerator(
        model="smollm2-135m-instruct",
        api_base_url=os.environ.get("TILLER_URL", "http://127.0.0.1:8000") + "/v1",
        api_key=Secret.from_token(os.environ.get("TILLER_TOKEN", "none")),
        generation_kwargs={
            "max_tokens": 32,
            "temperature": 0,
            "extra_body": {"steering_concepts": ["_worker/sentiment"], "steering_strength": strength},
        },
    )
    replies = generator.run([ChatMessage.from_user("Tell me about the hotel.")])["replies"]
    print(f"Strength {strength}: {replies[0].text}")
