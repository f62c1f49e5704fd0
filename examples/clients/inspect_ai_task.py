"""A task of Inspect: does the model call the hotel luxurious?

pip install inspect-ai openai
python inspect_ai_task.py
"""

import os

from inspect_ai import Task, eval
from inspect_ai.dataset import Sample
from inspect_ai.model import GenerateConfig, get_model
from inspect_ai.scorer import includes

task = Task(dataset=[Sample("Tell me about the hotel.", target="luxurious")], scorer=includes())
for strength in (0, -1):
    model = get_model(
        "openai-api/tiller/smollm2-135m-instruct",
        base_url=os.environ.get("TILLER_URL", "http://127.0.0.1:8000") + "/v1",
        api_key=os.environ.get("TILLER_TOKEN", "none"),
        config=GenerateConfig(
            max_tokens=32,
            temperature=0,
            extra_body={"steering_concepts": ["_worker/sentiment"], "steering_strength": strength},
        ),
    )
    [log] = eval(task, model, display="none")
    [sample] = log.samples
    print(f"Strength {strength}: {sample.output.completion} (score: {sample.scores['includes'].value})")
