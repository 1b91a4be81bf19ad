"""Train a character-level language model in twenty lines of Python, and let it write.

python examples/character_model.py
"""

from rnnfast import lm

# A text that every Python carries. For your own: lm.read_text("book.txt") gives a string.
corpus = lm.corpus.builtin()

# The settings of `rnnfast train`, which docs/command-line.md explains. This model is small and
# trains for five seconds, so it learns little more than how English words look.
config = lm.Config.defaults("char", nhid=128, emsize=64, max_seconds=5)
model, report = lm.train(config, corpus, out="character-model", overwrite=True)

print(f"{report['parameters']:,} parameters")
print(f"{report['valid_bits_per_token']:.2f} bits a character on text it has not seen")
print(model.generate("The ", length=200, temperature=0.7, seed=1))

# The folder holds the whole model. `rnnfast generate character-model` uses it too.
model = lm.load("character-model")
for sentence in ("The value of the expression", "Teh vlaue fo hte epxression"):
    print(f"{model.score(sentence).logprob:8.1f}  {sentence}")
