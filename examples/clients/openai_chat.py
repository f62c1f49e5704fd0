"""OpenAI's Python client. Fields that it does not know go into `extra_body`.

pip install openai
python openai_chat.py
"""

import os

from openai import OpenAI

client = OpenAI(
    base_url=os.environ.get("TILLER_URL", "http://127.0.0.1:8000") + "/v1",
    api_key=os.environ.get("TILLER_TOKEN", "none"),
)
for strength in (0, -1):
    stream = client.chat.completions.create(
        model="smollm2-135m-instruct",
        messages=[{"role": "user", "content": "Tell me about the hotel."}],
        max_tokens=32,
        temperature=0,
        stream=True,
        extra_body={"steering_concepts": ["_worker/sentiment"], "steering_strength": strength},
    )
    print(f"Strength {strength}: ", end="")
    for chunk in stream:
        print(chunk.choices[0].delta.content or "", end="", flush=True)
    print()
