"""Asks both models of litellm_proxy.yaml the same question. Fails if `gloomy` answers like the other one."""

import os
import sys

import httpx

answers = []
for model in ("smollm2-135m-instruct", "gloomy"):
    response = httpx.post(
        os.environ["TILLER_URL"] + "/v1/chat/completions",
        headers={"Authorization": f"Bearer {os.environ['TILLER_TOKEN']}"},
        json={
            "model": model,
            "messages": [{"role": "user", "content": "Tell me about the hotel."}],
            "max_tokens": 32,
            "temperature": 0,
        },
        timeout=120,
    )
    response.raise_for_status()
    answers.append(response.json()["choices"][0]["message"]["content"])
print("gloomy is steered" if answers[0] != answers[1] else sys.exit("gloomy is not steered"))
