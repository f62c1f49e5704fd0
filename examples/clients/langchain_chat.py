"""LangChain. `extra_body` has the fields that ChatOpenAI does not know.

pip install langchain-openai
python langchain_chat.py
"""

import os

from langchain_openai import ChatOpenAI

for strength in (0, -1):
    chat = ChatOpenAI(
        model="smollm2-135m-instruct",
        base_url=os.environ.get("TILLER_URL", "http://127.0.0.1:8000") + "/v1",
        api_key=os.environ.get("TILLER_TOKEN", "none"),
        max_tokens=32,
        temperature=0,
        extra_body={"steering_concepts": ["_worker/sentiment"], "steering_strength": strength},
    )
    print(f"Strength {strength}: {chat.invoke('Tell me about the hotel.').content}")
