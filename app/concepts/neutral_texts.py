"""The prompt for training concepts, and neutral texts and questions that are the same for all concepts."""

TRAINING_PROMPT = "Tell me something."
"""The user message before each text of a concept. The text itself is the assistant's answer."""

NEUTRAL_TEXTS = (  # Their perplexity shows how fluent a steered model is.
    "To boil an egg, place it in a pan and cover it with cold water. Bring the water to a boil, turn off the"
    " heat, and leave the egg in the pan for ten minutes before you peel it.",
    "A library is a place where people can read and borrow books. Visitors get a card, choose what they want"
    " from the shelves, and return the items after a few weeks so that others can use them.",
    "Rain forms when warm air rises and cools in the sky. The water in the air gathers into small drops, the"
    " drops join together in clouds, and they fall to the ground when they become too heavy.",
    "A bicycle moves when the rider pushes the pedals. The pedals turn a chain, and the chain turns the back"
    " wheel. The rider steers with the handlebars and uses the brakes to slow down or stop.",
    "A calendar shows the days, weeks, and months of the year. People use it to plan meetings, trips, and"
    " holidays. Most years have 365 days, and every leap year has one extra day in February.",
    "The Earth turns around its axis once every day. The side that faces the sun has daylight, while the"
    " other side is dark. This is why the sun appears to rise in the east and set in the west.",
    "A train station is a place where trains stop to let passengers get on and off. Travelers can buy tickets"
    " there, look at the timetable, and wait on the platform until their train arrives.",
    "Cows eat grass and other plants, and they spend several hours a day chewing. Farmers keep them for milk"
    " and meat. The milk is collected twice a day and used to make butter, cheese, and yogurt.",
)

NEUTRAL_QUESTIONS = (  # Training generates answers to them, to see what steering does to answers.
    "How does a washing machine work?",
    "What do people do at an airport?",
    "Write a short story about a lost key.",
    "Write a short story about a dog.",
    "What does a librarian do all day?",
    "What does a gardener do in spring?",
    "Describe a walk along the river.",
    "Describe a small village.",
    "Why do leaves change their color in autumn?",
    "Why is the sea salty?",
    "Tell me about your weekend.",
    "Tell me about your favorite hobby.",
    "Write a note to a new neighbor.",
    "Write a letter to an old friend.",
    "How do I choose a lamp for a small room?",
    "How do I clean a pair of shoes?",
    "Tell me about a city you know.",
    "Tell me about a person you admire.",
    "What do you think of trains?",
    "What do you think of old houses?",
)
"""User messages on everyday subjects. None of them asks for a tone or a language."""
