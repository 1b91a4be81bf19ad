"""n-gram models by dictionaries and recursion, straight from the papers; slow and easy to check.

A text is a list of segments, each a list of tokens whose first is context only: a sentence with its
boundary in front, or with `stream` the whole text. Contexts are tuples and never leave a segment.
"""

from collections import Counter, defaultdict
from functools import cached_property, lru_cache


def segments(ids, boundary, stream):
    """Tokens cut where contexts end."""
    if stream or len(ids) == 0:
        return [[boundary, *ids]]
    cut = [[boundary]]
    for token in ids:
        cut[-1].append(token)
        if token == boundary:
            cut.append([boundary])
    return cut if len(cut[-1]) > 1 else cut[:-1]


def contexts(ids, boundary, stream, order):
    """The context of each token, up to order - 1 tokens."""
    return [
        tuple(segment[max(0, t - order + 1) : t])
        for segment in segments(ids, boundary, stream)
        for t in range(1, len(segment))
    ]


class Reference:
    """p(word, context) with the smoothing of the subclass; `size` tokens, numbered from 0."""

    def __init__(self, ids, size, boundary, order, stream, k=1.0):
        self.size, self.order, self.stream, self.k = size, order, stream, k
        self.counts, self.starts = Counter(), Counter()
        for segment in segments(ids, boundary, stream):
            for end in range(1, len(segment)):
                for start in range(max(0, end - order + 1), end + 1):
                    ngram = tuple(segment[start : end + 1])
                    self.counts[ngram] += 1
                    self.starts[ngram] += start == 0
        self.p = lru_cache(None)(self.p)

    def followers(self, context):
        """Words seen after a context, and how often by `self.count`."""
        return {word: self.count((*context, word)) for word in self._followers[context]}

    @cached_property
    def _followers(self):
        result = defaultdict(list)
        for ngram in self.counts:
            result[ngram[:-1]].append(ngram[-1])
        return result

    def count(self, ngram):
        return self.counts[ngram]

    @cached_property
    def counts_of_counts(self):
        """By length: how many n-grams have each count."""
        result = defaultdict(Counter)
        for ngram in self.counts:
            result[len(ngram)][self.count(ngram)] += 1
        return result

    def shorter(self, word, context):
        return self.p(word, context[1:]) if context else 1 / self.size


class MaximumLikelihood(Reference):
    def p(self, word, context):
        followers = self.followers(context)
        if not followers:
            return self.shorter(word, context)
        return followers.get(word, 0) / sum(followers.values())


class AddK(Reference):
    def p(self, word, context):
        counts = self.counts
        if len(context) < self.order - 1:  # at the start of a segment
            counts = Counter() if self.stream else self.starts
        total = sum(counts[(*context, w)] for w in range(self.size))
        return (counts[(*context, word)] + self.k) / (total + self.k * self.size)


class StupidBackoff(Reference):
    def p(self, word, context):
        followers = self.followers(context)
        if word in followers:
            return followers[word] / sum(followers.values())
        return 0.4 * self.shorter(word, context)


class KneserNey(Reference):
    """Chen & Goodman (1999), section 3, with one discount."""

    def count(self, ngram):
        """Adjusted: of shorter n-grams the tokens before them, or all if there are none."""
        if len(ngram) == self.order:
            return self.counts[ngram]
        return len(self._before[ngram]) + self.starts[ngram]

    @cached_property
    def _before(self):
        result = defaultdict(set)
        for ngram in self.counts:
            result[ngram[1:]].add(ngram[0])
        return result

    def discount(self, length, count):
        n = self.counts_of_counts[length]
        return n[1] / (n[1] + 2 * n[2]) if n[1] and n[2] else 0.5

    def p(self, word, context):
        followers = self.followers(context)
        if not followers:
            return self.shorter(word, context)
        total = sum(followers.values())
        taken = {w: self.discount(len(context) + 1, c) for w, c in followers.items()}
        own = followers.get(word, 0) - taken.get(word, 0)
        return (own + sum(taken.values()) * self.shorter(word, context)) / total


class ModifiedKneserNey(KneserNey):
    """And with three, equation 26."""

    def discount(self, length, count):
        n = self.counts_of_counts[length]
        if not (n[1] and n[2]):
            return {1: 0.5, 2: 1.0}.get(count, 1.5)
        single = n[1] / (n[1] + 2 * n[2])
        if n[3]:
            three = [c - (c + 1) * single * n[c + 1] / n[c] for c in (1, 2, 3)]
            if min(three) > 0:
                return three[min(count, 3) - 1]
        return single


class Katz(Reference):
    """Katz (1987) with k = 5, by absolute discounting where Good-Turing fails."""

    def kept(self, length, count):
        n = self.counts_of_counts[length]
        beyond = 6 * n[6] / n[1] if n[1] else 0
        if all(n[r] for r in range(1, 7)) and beyond < 1:
            factors = [
                ((r + 1) * n[r + 1] / (r * n[r]) - beyond) / (1 - beyond) for r in range(1, 6)
            ]
            if all(0 < factor <= 1 for factor in factors):
                return count * factors[count - 1] if count <= 5 else count
        return count - (n[1] / (n[1] + 2 * n[2]) if n[1] and n[2] else 0.5)

    def p(self, word, context):
        followers = self.followers(context)
        if not followers:
            return self.shorter(word, context)
        total = sum(followers.values())
        if len(followers) == self.size:
            return followers[word] / total
        kept = {w: self.kept(len(context) + 1, c) for w, c in followers.items()}
        left = total - sum(kept.values())
        if all(kept[w] == followers[w] for w in followers):
            left, total = 1, total + 1
        if word in kept:
            return kept[word] / total
        unseen = sum(self.shorter(w, context) for w in range(self.size) if w not in followers)
        return left / total * self.shorter(word, context) / unseen


REFERENCES = {
    "mle": MaximumLikelihood,
    "add-k": AddK,
    "stupid": StupidBackoff,
    "katz": Katz,
    "kn": KneserNey,
    "mkn": ModifiedKneserNey,
}
