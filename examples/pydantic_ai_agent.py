"""An agent of pydantic-ai that chats with Tiller. The server needs `api.strict: false`.

pip install 'pydantic-ai-slim[openai]'
python examples/pydantic_ai_agent.py [URL]
"""

import sys

from pydantic_ai import Agent
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

url = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000"
provider = OpenAIProvider(base_url=f"{url}/v1", api_key="none")
agent = Agent(
    OpenAIChatModel("smollm2-135m-instruct", provider=provider),
    system_prompt="You are a geographer.",
    instructions="Answer in one short sentence.",
    model_settings={"max_tokens": 48, "temperature": 0},
)
first = agent.run_sync("What is the capital of France?")
print(first.output)
print(agent.run_sync("And of Italy?", message_history=first.all_messages()).output)
