"""Imports the model of open_webui_model.json into Open WebUI, and asks it and the unsteered one.

Works only without accounts (`WEBUI_AUTH=false`). Prints both answers.
"""

import json
import os
from pathlib import Path
from typing import Any

import httpx

client = httpx.Client(base_url=os.environ["TILLER_URL"], timeout=120)


def post(path: str, body: dict[str, Any]) -> Any:
    response = client.post(path, json=body)
    response.raise_for_status()
    return response.json()


token = post("/api/v1/auths/signin", {"email": "", "password": ""})["token"]
client.headers["Authorization"] = f"Bearer {token}"
post("/api/v1/models/import", {"models": json.loads(Path("open_webui_model.json").read_text())})
client.get("/api/models").raise_for_status()  # makes the imported model known
question = {"role": "user", "content": "Tell me about the hotel."}
for model in ("smollm2-135m-instruct", "gloomy"):
    body = {"model": model, "messages": [question], "max_tokens": 32, "temperature": 0}
    answer = post("/api/chat/completions", body)
    print(f"{model}: {answer['choices'][0]['message']['content']}")
