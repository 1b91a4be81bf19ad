"""The data of language models: vocabularies, corpora, and batches of token numbers."""
