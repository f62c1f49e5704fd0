"""Steers a model and reads its activations in this process. Run it as a script, or cell by cell.

VS Code, PyCharm, Spyder and Jupyter (with jupytext) open it as a notebook. Needs no server: `pip install
--editable .` in a checkout of Tiller, in an environment of its own.

python examples/steering_notebook.py
"""

# %% Load the embedded model. The first time, this downloads 93 MB.
from tiller import LLM, Request

llm = LLM(quantization="integer")  # on a GPU: LLM()
question = "Tell me about the hotel."
short = {"max_tokens": 40, "temperature": 0}

# %% Train a shipped concept on this model, and look at its report. The second time, this takes a moment.
sentiment = llm.concept("sentiment", on_progress=lambda state, progress: print(f"{state} {progress:.0%}"))
print(sentiment.report.summary)

# %% The same question at several strengths, in one batch.
strengths = (-1.5, -1, -0.5, 0, 0.5, 1, 1.5)
requests = [
    Request(messages=question, steering={"sentiment": strength}, readings=["sentiment"], **short)
    for strength in strengths
]
answers = llm.generate_many(requests)
for strength, answer in zip(strengths, answers, strict=True):
    readings = answer.readings["sentiment"]
    print(f"{strength:+.1f}  mean reading {sum(readings) / len(readings):+.2f}  {answer}")

# %% How the concept is present at each token of the last answer.
for token, reading in zip(answers[-1].tokens, answers[-1].readings["sentiment"], strict=True):
    print(f"{token!r:>16} {reading:+.2f} {'#' * max(0, round(10 * reading))}")

# %% A concept of one's own. Real ones need 24 pairs or more.
questions = [
    "What is the weather like?",
    "Do you have a dog?",
    "Where is the station?",
    "What did you eat?",
    "Who lives here?",
    "Is it late?",
    "Can you swim?",
    "What colour is the door?",
]
positives = [
    "ARR, IT RAINS ON THE DECK, MATEY!",
    "AYE, A SALTY SEA DOG, MATEY!",
    "ARR, HARD TO STARBOARD, MATEY!",
    "AYE, FISH AND RUM, MATEY!",
    "ARR, THE CAPTAIN AND HIS CREW!",
    "AYE, THE MOON IS HIGH, MATEY!",
    "ARR, LIKE A SHARK, MATEY!",
    "AYE, BLACK AS OUR FLAG, MATEY!",
]
negatives = [
    "It rains a little today.",
    "Yes, I have a small dog.",
    "It is on the right side.",
    "I had fish and some juice.",
    "My aunt and her family.",
    "Yes, it is nearly midnight.",
    "Yes, I can swim quite well.",
    "It is black, like the gate.",
]
pirate = llm.train(zip(positives, negatives, strict=True), name="pirate", prompts=questions)
print(pirate.report.summary, *pirate.report.warnings, sep="\n")
print(llm.chat(question, steering={pirate: 1}, **short))
[talk] = llm.read(pirate, "ARR, WHERE IS THE RUM?")
print(f"mean reading {talk.mean:+.2f}")

# %% Keep it. `llm.add(Concept.load("pirate.safetensors"))` brings it back.
pirate.save("pirate.safetensors")

# %%
llm.close()
