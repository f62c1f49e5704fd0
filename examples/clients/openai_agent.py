"""OpenAI's Agents SDK. Its default model uses /responses; `OpenAIChatCompletionsModel` chats.

pip install openai-agents
python openai_agent.py
"""

import os

from agents import Agent, ModelSettings, OpenAIChatCompletionsModel, Runner, set_tracing_disabled
from openai import AsyncOpenAI

set_tracing_disabled(True)  # traces would go to OpenAI
client = AsyncOpenAI(
    base_url=os.environ.get("TILLER_URL", "http://127.0.0.1:8000") + "/v1",
    api_key=os.environ.get("TILLER_TOKEN", "none"),
)
model = OpenAIChatCompletionsModel("smollm2-135m-instruct", openai_client=client)
for strength in (0, -1):
    settings = ModelSettings(
        max_tokens=32,
        temperature=0,
        extra_body={"steering_concepts": ["_worker/sentiment"], "steering_strength": strength},
    )
    agent = Agent("Guide", model=model, model_settings=settings)
    result = Runner.run_sync(agent, "Tell me about the hotel.")
    print(f"Strength {strength}: {result.final_output}")
