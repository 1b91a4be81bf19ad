"""Neural language models: the models, their cells, output layers and ensembles."""
