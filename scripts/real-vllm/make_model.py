"""Write a tiny Llama with random weights, and a tokenizer for it, that vLLM serves with `--load-format dummy`.

Nothing is downloaded: the tokenizer is trained on generated sentences and the weights are never written.
Run it with the interpreter that will serve the model, because transformers 4 cannot read a tokenizer of transformers 5.

    make_model.py DIRECTORY
"""

import json
import pathlib
import sys

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

BEGIN, END = "<s>", "</s>"  # become ids 0 and 1: special tokens come first
VOCABULARY = 1000

# Many thin layers: a step then takes several milliseconds, most of them overhead of the engine's worker, so that the
# worker and not the HTTP server is what a burst fills.
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 16,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "vocab_size": 1024,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "torch_dtype": "bfloat16",
}


def sentences(count=4000):
    """Text enough to fill the vocabulary."""
    for i in range(count):
        yield f"request {i} of {i * i}: fewer joules for each token, at a clock that suits the load of the moment"


def tokenizer():
    """A byte-level BPE with the two special tokens and a plain chat template."""
    bpe = Tokenizer(models.BPE(unk_token=None))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=[BEGIN, END], initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(sentences(), trainer)
    wrapped = PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token=BEGIN, eos_token=END)
    wrapped.chat_template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}assistant:"
    return wrapped


def main():
    out = pathlib.Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    tokenizer().save_pretrained(out)
    # Last, because its presence is what says that the model is complete.
    (out / "config.json").write_text(json.dumps(CONFIG, indent=1) + "\n")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main()
