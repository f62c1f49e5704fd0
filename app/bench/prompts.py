"""Makes prompts of random common words: the same for all servers, and each only once in a run."""

import random
from collections.abc import Sequence

MIN_WORDS = 4
"""Minimum length of a prompt, in words. Enough for all prompts of a run to differ."""

# Most tokenizers encode each of these words as one token.
_WORDS = """
    action activity age air area arm art bank base bird blood board boat body book boy bread bridge
    brother building business car case cell center century chair child church city class college color
    community company control cost country court culture data daughter day death decision defense
    development difference director doctor dog door dream drug education effect energy event evidence
    experience eye face fact family farm father field figure film fire fish floor food foot force forest
    form friend game gas girl glass goal gold government ground group growth hair hand health heart heat
    history home horse hour house idea image industry information interest issue job kind king knowledge
    lake land language law leader letter level life light line list loss love machine man market material
    matter member memory message method middle mind minute model moment money month mother movie music
    name nation nature network news night north note number office oil order page paper parent part party
    past patient peace people period person phone picture piece place plan plant player point policy
    position power practice president pressure price problem process product program project property
    purpose quality question race radio rain rate reason record region report research resource result
    river road rock role room rule scene school science sea season section security series service ship
    shot side sign skill snow social son song sound source south space speech spring staff stage star
    state station step stone store story street strength student study style success summer sun support
    surface system table task teacher team technology term test theory thing thought time town trade
    training treatment tree trial trip truth type unit value version view voice wall war watch water way
    weather week weight west wife wind window winter woman wood word work worker world writer year
""".split()  # noqa: SIM905 - a list of quoted words is harder to read


class Prompts:
    """A sequence of distinct prompts. The same seed gives the same words at the same positions."""

    def __init__(self, seed: int, vocabulary: Sequence[str] = _WORDS) -> None:
        """`vocabulary`: the words that prompts consist of."""
        self._vocabulary = vocabulary
        self._seed = seed
        self._tried = 0
        self._drawn: set[str] = set()

    def draw(self, words: int) -> str:
        """Returns the next prompt. It has at least MIN_WORDS words."""
        while True:
            # Each prompt has its own seed. Servers with different templates need prompts of slightly
            # different lengths, and still get the same words, up to that difference.
            generator = random.Random(f"{self._seed} {self._tried}")  # noqa: S311 - not for secrets
            prompt = " ".join(generator.choices(self._vocabulary, k=max(words, MIN_WORDS)))
            self._tried += 1
            if prompt not in self._drawn:
                self._drawn.add(prompt)
                return prompt
