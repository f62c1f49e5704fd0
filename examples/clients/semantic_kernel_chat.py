"""Semantic Kernel.

pip install semantic-kernel
python semantic_kernel_chat.py
"""

import asyncio
import os

from openai import AsyncOpenAI
from semantic_kernel.connectors.ai.open_ai import OpenAIChatCompletion, OpenAIChatPromptExecutionSettings
from semantic_kernel.contents import ChatHistory


async def main() -> None:
    client = AsyncOpenAI(
        base_url=os.environ.get("TILLER_URL", "http://127.0.0.1:8000") + "/v1",
        api_key=os.environ.get("TILLER_TOKEN", "none"),
    )
    service = OpenAIChatCompletion(ai_model_id="smollm2-135m-instruct", async_client=client)
    for strength in (0, -1):
        history = ChatHistory()
        history.add_user_message("Tell me about the hotel.")
        settings = OpenAIChatPromptExecutionSettings(
            max_tokens=32,
            temperature=0,
            extra_body={"steering_concepts": ["_worker/sentiment"], "steering_strength": strength},
        )
        print(f"Strength {strength}: {await service.get_chat_message_content(history, settings)}")


asyncio.run(main())
