// OpenAI's JavaScript client. It sends fields that it does not know as they are.
//
// npm install openai
// node openai_chat.mjs
import OpenAI from "openai";

const client = new OpenAI({
  baseURL: `${process.env.TILLER_URL ?? "http://127.0.0.1:8000"}/v1`,
  apiKey: process.env.TILLER_TOKEN ?? "none",
});
for (const strength of [0, -1]) {
  const answer = await client.chat.completions.create({
    model: "smollm2-135m-instruct",
    messages: [{ role: "user", content: "Tell me about the hotel." }],
    max_tokens: 32,
    temperature: 0,
    steering_concepts: ["_worker/sentiment"],
    steering_strength: strength,
  });
  console.log(`Strength ${strength}: ${answer.choices[0].message.content}`);
}
