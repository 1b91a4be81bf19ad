"""Skip-gram against its textbook objective."""

import numpy as np
import pytest
import torch
from embedding_helpers import TEXT, VOCAB, neighbours_are_of_the_group

from rnnfast import embeddings, lm
from rnnfast.embeddings import Vectors
from rnnfast.embeddings.skipgram import _sentences

pytestmark = pytest.mark.usefixtures("one_thread")


def full_softmax_skipgram(ids, vocab, dim, window, epochs=150, seed=0):
    """Minimise the textbook objective (Mikolov et al. 2013, equation 2) by gradient descent.

    It is the sum of -log softmax_o(u_o . v_c) over all pairs of a word c and a word o within the
    window, computed from the counts of the pairs.
    """
    counts = torch.zeros(len(vocab), len(vocab), dtype=torch.double)
    line = np.cumsum(ids == vocab.boundary)
    for d in range(1, window + 1):
        near = (line[:-d] == line[d:]) & (ids[:-d] != vocab.boundary)
        for a, b in zip(ids[:-d][near], ids[d:][near], strict=True):
            counts[a, b] += 1
            counts[b, a] += 1
    torch.manual_seed(seed)
    v, u = (torch.randn(len(vocab), dim, dtype=torch.double).mul_(0.1) for _ in range(2))
    optimizer = torch.optim.Adam([v.requires_grad_(), u.requires_grad_()], 0.05)
    losses = []
    for _ in range(epochs):
        loss = -(counts * (v @ u.t()).log_softmax(1)).sum() / counts.sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    frequencies = counts / counts.sum()
    conditional = counts / counts.sum(1, keepdim=True).clamp_min(1)
    entropy = -float((frequencies * conditional.clamp_min(1e-300).log()).sum())
    return v.detach().numpy(), losses, entropy


def test_skipgram():
    """The neighbours are those of the textbook objective, which reaches the entropy of the text."""
    ids = VOCAB.encode_stream(TEXT)
    matrix, losses, entropy = full_softmax_skipgram(ids, VOCAB, 10, 5)
    assert entropy <= losses[-1] < entropy + 0.01
    neighbours_are_of_the_group(Vectors.of(VOCAB, matrix))
    pytest.importorskip("gensim")
    records = []
    vectors = embeddings.skipgram(TEXT, VOCAB, 10, epochs=30, progress=records.append)
    neighbours_are_of_the_group(vectors)
    assert len(records) == 30 and records[-1]["loss"] < records[0]["loss"]
    again = embeddings.skipgram(TEXT, VOCAB, 10, epochs=30)
    assert np.array_equal(vectors.matrix, again.matrix)


def test_long_lines_are_several_sentences():
    """Gensim reads at most 10,000 words of a sentence."""
    vocab = lm.Vocabulary.build("word", ["a b c"])
    lines = ["a zebra b", "", " ".join("abc"[i * i % 3] for i in range(25_000)), "c " * 10_000]
    found = _sentences("\n".join(lines), vocab)
    assert [len(words) for words in found] == [3, 10_000, 10_000, 5_000, 10_000]
    assert found[0] == ["a", "<unk>", "b"]
    assert [*found[1], *found[2], *found[3]] == lines[2].split()
    with pytest.raises(lm.UserError, match="no words"):
        _sentences("\n \n", vocab)
