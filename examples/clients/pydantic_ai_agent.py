"""An agent of pydantic-ai. `OpenAIChatModel` chats; other models of the provider use /responses.

pip install 'pydantic-ai-slim[openai]'
python pydantic_ai_agent.py
"""

import os

from pydantic_ai import Agent
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

provider = OpenAIProvider(
    base_url=os.environ.get("TILLER_URL", "http://127.0.0.1:8000") + "/v1",
    api_key=os.environ.get("TILLER_TOKEN", "none"),
)
agent = Agent(OpenAIChatModel("smollm2-135m-instruct", provider=provider))
for strength in (0, -1):
    settings = {
        "max_tokens": 32,
        "temperature": 0,
        "extra_body": {"steering_concepts": ["_worker/sentiment"], "steering_strength": strength},
    }
    result = agent.run_sync("Tell me about the hotel.", model_settings=settings)
    print(f"Strength {strength}: {result.output}")
