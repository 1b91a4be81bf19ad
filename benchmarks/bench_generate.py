"""Time `rnnfast.lm.generate` against a plain loop over `nn.RNN`, in tokens per second.

Both hold the same weights, and their texts at temperature 0 must agree before anything is timed.
Samples alternate as in `rnnfast bench`. The time of a text includes its preparation, in which
rnnfast folds the embedding into a table and packs the weights.
"""

import argparse
import json
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from rnnfast import bench, build_info, lm
from rnnfast._common.files import write_atomic
from rnnfast._common.runtime import one_thread

OURS = "rnnfast"
SIZES = ((128, 65), (512, 65), (1024, 65), (200, 10_000))  # H, V


@torch.inference_mode()
def loop(embedding, rnn, decoder, length, temperature):
    """Return the numbers of `length` tokens that follow token 0.

    At `temperature` 0 each token is the most probable one.
    """
    token, hidden, tokens = torch.zeros(1, 1, dtype=torch.int64), None, []
    for _ in range(length):
        output, hidden = rnn(embedding(token), hidden)
        logits = decoder(output[-1])
        if temperature == 0:
            token = logits.argmax(dim=-1, keepdim=True)
        else:
            token = torch.multinomial(torch.softmax(logits / temperature, dim=-1), 1)
        tokens.append(int(token))
    return tokens


def measure(H, V, length, repeats):
    """Return the median tokens per second of each implementation, and the ratios of rnnfast's."""
    # The boundary, after which a text begins, is token 0. The loop begins after token 0 as well.
    tokens = ["\n", *(chr(0x4E00 + i) for i in range(V - 1))]
    vocab = lm.Vocabulary.from_json({"level": "char", "tokens": tokens})
    torch.manual_seed(0)
    model = lm.RNNLM(vocab, emsize=min(H, 128), nhid=H).eval()
    rnn = nn.RNN(model.rnn.input_size, H).eval()
    rnn.load_state_dict(model.rnn.state_dict())

    def ours(temperature=1.0):
        return model.generate(length=length, temperature=temperature, seed=0)

    def theirs(temperature=1.0):
        return loop(model.encoder, rnn, model.decoder, length, temperature)

    def theirs_on_one_thread():
        with one_thread():
            theirs()

    if ours(0) != vocab.decode(theirs(0)):
        raise RuntimeError(f"texts at temperature 0 differ at H={H} V={V}: nothing was timed")
    calls = {OURS: ours, "loop": theirs, "loop, 1 thread": theirs_on_one_thread}
    medians = bench.median_seconds(calls, repeats)
    rates = {name: length / seconds for name, seconds in medians.items()}
    ratios = {name: rates[OURS] / rate for name, rate in rates.items() if name != OURS}
    return {"H": H, "V": V, "tokens_per_second": rates, "ratio": ratios}


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    about = "Tokens of a text (default: 1000)"
    parser.add_argument("--length", type=int, metavar="N", default=1000, help=about)
    about = "Samples (default: as many as fit in 1.5 s a size, at least 5)"
    parser.add_argument("--repeats", type=int, metavar="N", help=about)
    parser.add_argument("--json", type=Path, metavar="PATH", help="Write the figures as JSON")
    args = parser.parse_args()
    results = [measure(*size, args.length, args.repeats) for size in SIZES]
    table = Table("H", "V", title=f"tokens/s, {torch.get_num_threads()} threads")
    for name in results[0]["tokens_per_second"]:
        table.add_column(name, justify="right")
        if name != OURS:
            table.add_column("ratio", justify="right")
    for result in results:
        row = [str(result["H"]), str(result["V"])]
        for name, rate in result["tokens_per_second"].items():
            row.append(f"{rate:,.0f}")
            if name != OURS:
                row.append(f"{result['ratio'][name]:.1f}")
        table.add_row(*row)
    Console().print(table)
    if args.json:
        report = {"threads": torch.get_num_threads(), "build": build_info(), "length": args.length}
        write_atomic(args.json, (json.dumps(report | {"sizes": results}, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
