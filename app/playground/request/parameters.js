// The parameters of a chat request that are plain values: name, range, default, one line of explanation.
// `kind` chooses the control (parts/parameter.js). A parameter without a value is left out of the request.

export const LENGTH = [
  {
    name: "max_tokens",
    kind: "integer",
    min: 1,
    unset: "what fits",
    explain: "The answer ends after this many tokens.",
  },
  {
    name: "stop",
    kind: "lines",
    explain: "The answer ends before any of these texts. One per line; \\n is a line break.",
  },
  { name: "n", kind: "integer", min: 1, max: 16, unset: "1", explain: "How many answers to the same prompt." },
];

export const SAMPLING = [
  {
    name: "temperature",
    kind: "number",
    min: 0,
    max: 2,
    step: 0.1,
    unset: "1",
    explain: "0 always takes the most likely token; higher values are more varied.",
  },
  {
    name: "top_p",
    kind: "number",
    min: 0,
    max: 1,
    step: 0.05,
    unset: "1",
    explain: "Samples from the most likely tokens that together reach this probability.",
  },
  {
    name: "top_k",
    kind: "integer",
    min: 1,
    unset: "all",
    explain: "Samples from this many most likely tokens.",
  },
  {
    name: "frequency_penalty",
    kind: "number",
    min: -2,
    max: 2,
    step: 0.1,
    unset: "0",
    explain: "Lowers a token's logit by this, for each time that the answer has it already.",
  },
  {
    name: "presence_penalty",
    kind: "number",
    min: -2,
    max: 2,
    step: 0.1,
    unset: "0",
    explain: "Lowers a token's logit by this, once, if the answer has it already.",
  },
  {
    name: "logit_bias",
    kind: "bias",
    explain: "Added to the logits of tokens: -100 bans a token, 100 allows no other ones.",
  },
];

export const DELIVERY = [
  { name: "stream", kind: "boolean", explain: "Sends the answer piece by piece, while it is made." },
  { name: "nice", kind: "boolean", explain: "Lets other requests go first when the server is busy." },
];

export const DETAILS = [
  { name: "logprobs", kind: "boolean", explain: "Returns the log probability of each token." },
  {
    name: "top_logprobs",
    kind: "integer",
    min: 0,
    max: 20,
    unset: "0",
    explain: "Also returns this many most likely tokens at each position. Above 0, it turns on logprobs.",
  },
];

export const STEERING = [
  {
    name: "steering_scope",
    kind: "choice",
    choices: ["all", "prompt", "answer"],
    explain: {
      all: "Steers the prompt and the answer.",
      prompt: "Steers the prompt only.",
      answer: "Steers the answer only, from its second token on.",
    },
  },
  {
    name: "steering_mode",
    kind: "choice",
    choices: ["add", "ablate", "clamp"],
    explain: {
      add: "Adds the concept's vector, times the strength.",
      ablate: "Removes what points along the vector: strength 0 nothing, 1 all of it.",
      clamp: "Sets what points along the vector to what add would add.",
    },
  },
];
