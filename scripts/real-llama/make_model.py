"""Make a tiny llama model of random weights as one GGUF file, with numpy and gguf alone.

Token ids from 2 to 999 may stand in a prompt, as load.py has them; 0 and 1 are the special tokens.

    make_model.py FILE
"""

import itertools
import pathlib
import string
import sys

import gguf
import numpy

VOCABULARY = 1000
WIDTH, HIDDEN, HEADS = 64, 128, 2
# Enough layers that a request takes a tenth of a second: its metrics page then shows it at work.
BLOCKS = 16
CONTEXT = 4096


def byte_letters():
    """The printable stand-ins that GPT-2's byte-level BPE has for the 256 bytes."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = itertools.count(256)
    return [chr(byte) if byte in plain else chr(next(others)) for byte in range(256)]


def vocabulary():
    """Tokens and merges: special tokens, all bytes, and pairs of letters until there are enough."""
    tokens = ["<s>", "</s>", *byte_letters()]
    pairs = itertools.product(string.ascii_lowercase, string.ascii_letters)
    pairs = list(itertools.islice(pairs, VOCABULARY - len(tokens)))
    return tokens + ["".join(pair) for pair in pairs], [" ".join(pair) for pair in pairs]


def tensors():
    """Names and shapes, rows first."""
    yield "token_embd.weight", (VOCABULARY, WIDTH)
    yield "output_norm.weight", (WIDTH,)
    yield "output.weight", (VOCABULARY, WIDTH)
    for block in range(BLOCKS):
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            yield f"blk.{block}.{name}.weight", (WIDTH, WIDTH)
        for name in ("attn_norm", "ffn_norm"):
            yield f"blk.{block}.{name}.weight", (WIDTH,)
        for name in ("ffn_gate", "ffn_up"):
            yield f"blk.{block}.{name}.weight", (HIDDEN, WIDTH)
        yield f"blk.{block}.ffn_down.weight", (WIDTH, HIDDEN)


def main():
    out = pathlib.Path(sys.argv[1])
    unfinished = out.with_suffix(".part")
    writer = gguf.GGUFWriter(unfinished, "llama")
    writer.add_name("tiny")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(BLOCKS)
    writer.add_feed_forward_length(HIDDEN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    tokens, merges = vocabulary()
    kinds = [gguf.TokenType.CONTROL] * 2 + [gguf.TokenType.NORMAL] * (len(tokens) - 2)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(merges)
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    random = numpy.random.default_rng(1)
    for name, shape in tensors():
        # Norms are near one, all else is small, so that no activation grows out of bounds.
        values = random.normal(1.0 if len(shape) == 1 else 0.0, 0.05, shape)
        writer.add_tensor(name, values.astype(numpy.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    unfinished.rename(out)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main()
