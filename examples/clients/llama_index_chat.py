"""LlamaIndex. With `is_chat_model=True` it chats; without, it asks for /completions, which Tiller lacks.

pip install llama-index-llms-openai-like
python llama_index_chat.py
"""

import os

from llama_index.llms.openai_like import OpenAILike

for strength in (0, -1):
    llm = OpenAILike(
        model="smollm2-135m-instruct",
        api_base=os.environ.get("TILLER_URL", "http://127.0.0.1:8000") + "/v1",
        api_key=os.environ.get("TILLER_TOKEN", "none"),
        is_chat_model=True,
        max_tokens=32,
        temperature=0,
        additional_kwargs={
            "extra_body": {"steering_concepts": ["_worker/sentiment"], "steering_strength": strength}
        },
    )
    print(f"Strength {strength}: {llm.complete('Tell me about the hotel.').text}")
