"""Texts per second of the in-graph tokeniser against its peers, on the shipped sentences.

    python tests/benchmarks/tokenizer.py [--hostile 0.0] [--repeats 7]

Every contestant gives the ids of all sentences, without special tokens, on all cores; repeats are interleaved and
medians taken. `encode` adds special tokens, segments, truncation and counts. `--hostile` puts U+200D into that share
of the texts, so that they need rewriting. Ids are compared first: a difference ends the benchmark.
"""

import argparse
import csv
import os
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ["TOKENIZERS_PARALLELISM"] = "true"

import tensorflow as tf
import tensorflow_text as tf_text
from transformers import BertTokenizer

import pipeline
from components.transform.wordpiece import WordPiece

DATA = Path(pipeline.__file__).parent / "data"
TEXTS = tf.TensorSpec([None], tf.string)
CORES = len(os.sched_getaffinity(0))
BATCH = 1024


def read_texts(hostile: float) -> list[str]:
    with open(DATA / "pmc_rct_sections" / "train.csv", encoding="utf-8") as file:
        texts = [row["text"] for row in csv.DictReader(file)]
    every = round(1 / hostile) if hostile else len(texts) + 1
    return [text + "\u200d" if number % every == 0 else text for number, text in enumerate(texts, start=1)]


def batches(texts: list[str], size: int) -> list[tf.Tensor]:
    return [tf.constant(texts[start : start + size]) for start in range(0, len(texts), size)]


def on_all_cores(function, arguments):
    with ThreadPoolExecutor(CORES) as pool:
        return list(pool.map(function, arguments))


def interleaved(contestants: dict, repeats: int) -> dict[str, float]:
    """Median seconds of each contestant, after one call that is not counted."""
    seconds = {name: [] for name in contestants}
    for repeat in range(repeats + 1):
        for name, run in contestants.items():
            start = time.perf_counter()
            run()
            if repeat:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(times) for name, times in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hostile", type=float, default=0.0, help="share of texts that need rewriting")
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()

    texts = read_texts(arguments.hostile)
    vocab_file = DATA / "biobert" / "vocab.txt"
    tokens = vocab_file.read_text(encoding="utf-8").splitlines()
    wordpiece = WordPiece(tokens)
    tokenize = tf.function(lambda batch: wordpiece.tokenize(batch).flat_values, input_signature=[TEXTS])
    encode = tf.function(lambda batch: wordpiece.encode(batch, max_length=128).input_ids, input_signature=[TEXTS])
    fast_bert = tf_text.FastBertTokenizer(tokens, token_out_type=tf.int32)
    bare = tf.function(lambda batch: fast_bert.tokenize(batch).flat_values, input_signature=[TEXTS])
    reference = BertTokenizer(vocab={token: index for index, token in enumerate(tokens)}, do_lower_case=False)
    rust = reference.backend_tokenizer
    rust.encode_special_tokens = True

    theirs = [encoding.ids for encoding in rust.encode_batch(texts, add_special_tokens=False)]
    if [one for part in batches(texts, BATCH) for one in tokenize(part).numpy()] != [i for ids in theirs for i in ids]:
        raise SystemExit("the ids differ from the reference's: no benchmark")

    parts = batches(texts, BATCH)
    seconds = interleaved(
        {
            "transformers, encode_batch": lambda: rust.encode_batch(texts, add_special_tokens=False),
            "transformers, encode_batch_fast": lambda: rust.encode_batch_fast(texts, add_special_tokens=False),
            "FastBertTokenizer (other ids on hostile texts)": lambda: on_all_cores(bare, parts),
            "WordPiece.tokenize": lambda: on_all_cores(tokenize, parts),
            "WordPiece.encode": lambda: on_all_cores(encode, parts),
        },
        arguments.repeats,
    )
    base = seconds["transformers, encode_batch"]
    print(f"{len(texts):,} sentences, {arguments.hostile:.0%} hostile, {CORES} cores, batches of {BATCH:,}")
    for name, median in seconds.items():
        print(f"  {name:<48}{len(texts) / median:>10,.0f} texts/s{base / median:>7.1f} x")

    sizes = [1, 8, 32, 128, 512, 2048, 8192]
    by_size = {size: batches(texts[: max(size, 64) if size < 64 else None], size) for size in sizes}
    seconds = interleaved(
        {size: lambda parts=by_size[size]: [encode(part) for part in parts] for size in sizes}, arguments.repeats
    )
    print("WordPiece.encode, one caller, by batch size")
    for size, median in seconds.items():
        count = sum(len(part) for part in by_size[size])
        print(f"  {size:<6,}{count / median:>10,.0f} texts/s{1e6 * median / len(by_size[size]):>12,.0f} µs a batch")


if __name__ == "__main__":
    main()
