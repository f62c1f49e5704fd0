"""Aleph Alpha's Python client. It can name concepts; it has no field for their strength, which is then 1.

pip install aleph-alpha-client
python aleph_alpha_chat.py
"""

import os

from aleph_alpha_client import Client
from aleph_alpha_client.chat import ChatRequest, Message, Role

client = Client(
    token=os.environ.get("TILLER_TOKEN", "none"),
    host=os.environ.get("TILLER_URL", "http://127.0.0.1:8000"),
)
for strength, concepts in ((0, []), (1, ["_worker/sentiment"])):
    request = ChatRequest(
        model="smollm2-135m-instruct",
        messages=[Message(Role.User, "Tell me about the hotel.")],
        maximum_tokens=32,
        temperature=0.0,
        steering_concepts=concepts,
    )
    answer = client.chat(request, model="smollm2-135m-instruct")
    print(f"Strength {strength}: {answer.message.content}")
