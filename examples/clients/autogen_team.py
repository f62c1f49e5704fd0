"""A team of three AutoGen agents. The server needs `api.strict: false`: see docs/api.md, "Lenient mode".

pip install autogen-agentchat 'autogen-ext[openai]'
python autogen_team.py
"""

import asyncio
import os

from autogen_agentchat.agents import AssistantAgent
from autogen_agentchat.conditions import MaxMessageTermination
from autogen_agentchat.teams import RoundRobinGroupChat
from autogen_ext.models.openai import OpenAIChatCompletionClient

ROLES = {
    "poet": "You write one line of verse.",
    "critic": "You criticise the last line in one sentence.",
    "editor": "You say in one sentence what to change.",
}


async def main() -> None:
    client = OpenAIChatCompletionClient(
        model="smollm2-135m-instruct",
        base_url=os.environ.get("TILLER_URL", "http://127.0.0.1:8000") + "/v1",
        api_key=os.environ.get("TILLER_TOKEN", "none"),
        max_tokens=48,
        temperature=0,
        model_info={
            "vision": False,
            "function_calling": False,
            "json_output": False,
            "structured_output": False,
            "family": "unknown",
        },
    )
    agents = [AssistantAgent(name, client, system_message=role) for name, role in ROLES.items()]
    team = RoundRobinGroupChat(agents, termination_condition=MaxMessageTermination(6))
    result = await team.run(task="Write about the sea.")
    for message in result.messages:
        print(f"{message.source}: {message.to_text()}")
    await client.close()


asyncio.run(main())
