"""LiteLLM. The prefix `openai/` says which API the server has.

pip install litellm
python litellm_chat.py
"""

import os

import litellm

for strength in (0, -1):
    answer = litellm.completion(
        model="openai/smollm2-135m-instruct",
        api_base=os.environ.get("TILLER_URL", "http://127.0.0.1:8000") + "/v1",
        api_key=os.environ.get("TILLER_TOKEN", "none"),
        messages=[{"role": "user", "content": "Tell me about the hotel."}],
        max_tokens=32,
        temperature=0,
        extra_body={"steering_concepts": ["_worker/sentiment"], "steering_strength": strength},
    )
    print(f"Strength {strength}: {answer.choices[0].message.content}")
