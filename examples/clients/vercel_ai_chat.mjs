// Vercel's AI SDK. The fields in `providerOptions` go into the request's body.
//
// npm install ai @ai-sdk/openai-compatible
// node vercel_ai_chat.mjs
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText } from "ai";

const tiller = createOpenAICompatible({
  name: "tiller",
  baseURL: `${process.env.TILLER_URL ?? "http://127.0.0.1:8000"}/v1`,
  apiKey: process.env.TILLER_TOKEN ?? "none",
});
for (const strength of [0, -1]) {
  const { text } = await generateText({
    model: tiller.chatModel("smollm2-135m-instruct"),
    prompt: "Tell me about the hotel.",
    maxOutputTokens: 32,
    temperature: 0,
    providerOptions: {
      tiller: { steering_concepts: ["_worker/sentiment"], steering_strength: strength },
    },
  });
  console.log(`Strength ${strength}: ${text}`);
}
