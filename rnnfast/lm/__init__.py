"""Language models: train, evaluate, score and generate with RNNs, windows and n-grams.

A model is trained on a corpus with the settings of a `Config`. This takes a minute:

    from rnnfast import lm

    config = lm.Config.defaults("char", max_seconds=60)
    model, report = lm.train(config, lm.corpus.builtin(), out="my-model")
    print(report["valid_bits_per_token"], model.generate("The ", length=200, seed=1))
    print(lm.load("my-model").score("A sentence.").logprob)
"""

from .._common.errors import Interrupted, UserError
from .._common.text import Text, open_text, read_text
from .compare import compare
from .config import Config
from .data import corpus
from .data.corpus import Corpus
from .data.vocabulary import Vocabulary
from .language_model import Evaluation, Score, complete, evaluate, generate, score
from .mixture import Mixture
from .neural.join import join
from .neural.models import RNNLM, NeuralLM, WindowLM
from .ngram import arpa
from .ngram.model import NgramLM
from .storage import join_folders, load, save
from .training.report import report
from .training.runs import prepare, resume, train
from .training.trainer import Trainer

__all__ = [
    "RNNLM",
    "Config",
    "Corpus",
    "Evaluation",
    "Interrupted",
    "Mixture",
    "NeuralLM",
    "NgramLM",
    "Score",
    "Text",
    "Trainer",
    "UserError",
    "Vocabulary",
    "WindowLM",
    "arpa",
    "compare",
    "complete",
    "corpus",
    "evaluate",
    "generate",
    "join",
    "join_folders",
    "load",
    "open_text",
    "prepare",
    "read_text",
    "report",
    "resume",
    "save",
    "score",
    "train",
]
