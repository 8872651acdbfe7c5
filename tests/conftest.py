"""Fixtures of the whole test suite: tiny random checkpoints, the packaged model, the evaluation data, no network."""

import json
import os
import socket
from pathlib import Path

import pytest

# Tiny models are quickest on one thread, and so the workers of pytest-xdist leave each other's cores alone.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# From these the vocabularies of the tiny tokenizers are made.
SENTENCES = [
    "A man plays the guitar on a quiet street.",
    "Two children are running after a red ball.",
    "The cat sleeps.",
    "Nobody has opened the old wooden door for years, and the garden behind it has grown wild.",
    "She reads a letter to her brother in the kitchen.",
    "The children run after the ball, but the dog is quicker.",
    "It didn't rain.",
    "Three boats left the harbour before sunrise; only one came back before the storm.",
]


@pytest.fixture(scope="session")
def sentences() -> list[str]:
    """Sentences of different lengths, all of whose words the tiny tokenizers know, and a few texts they do not."""
    return [*SENTENCES, "", "Ünïcode & émoji 🙂 too", "word", " ".join(SENTENCES[:3])]


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory):
    """Factory: ``tiny_checkpoint("bert") -> Path`` of a random checkpoint of 3 layers, width 32, 96 positions.

    Families: albert, bert, deberta-v2, distilbert, electra, modernbert, mpnet, roberta, xlm-roberta. One checkpoint a
    family and test session: copy it before changing it.
    """
    made = {}

    def make(family: str = "bert") -> Path:
        if family not in made:
            made[family] = _write_tiny_checkpoint(tmp_path_factory.mktemp("tiny") / f"tiny-{family}", family)
        return made[family]

    return make


@pytest.fixture(scope="session")
def minilm():
    """The packaged all-MiniLM-L6-v2 on the CPU; shared by all tests, so do not change it."""
    from simcse_kit import SentenceEncoder

    return SentenceEncoder.from_pretrained("all-MiniLM-L6-v2", device="cpu")


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The evaluation and training data; a test that needs it is skipped where there is none."""
    from simcse_kit.data.senteval import data_root

    root = data_root()
    if root is None:
        pytest.skip("no evaluation data here: set SIMCSE_KIT_DATA to its folder")
    return root


@pytest.fixture
def no_network(monkeypatch):
    """Refuse every connection; at the end, fail if one was tried, even if the failure was swallowed."""
    tried = []

    def refuse(*arguments, **options):
        tried.append(arguments)
        raise OSError("no network in this test")

    for method in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, method, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    yield
    assert not tried


def _write_tiny_checkpoint(directory: Path, family: str) -> Path:
    import torch
    from transformers import AutoConfig, AutoModel

    tokenizer = _tiny_tokenizer(family)
    names = {"distilbert": {"dim": "hidden_size", "n_layers": "num_hidden_layers", "n_heads": "num_attention_heads"}}
    shape = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 64}
    shape = {ours: shape[general] for ours, general in names.get(family, dict(zip(shape, shape, strict=True))).items()}
    extras = {
        "albert": {"embedding_size": 16},
        "distilbert": {"hidden_dim": 64},
        "electra": {"embedding_size": 16},
        "deberta-v2": {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 16},
        "modernbert": {"global_attn_every_n_layers": 2, "local_attention": 8},
    }
    # The RoBERTa family counts positions from the padding index + 1 = 2.
    offset = 2 if family in ("roberta", "xlm-roberta", "mpnet") else 0
    config = AutoConfig.for_model(
        family,
        vocab_size=len(tokenizer),
        max_position_embeddings=96 + offset,
        **{f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "bos", "eos", "cls", "sep")},
        **shape,
        **extras.get(family, {}),
    )
    model = AutoModel.from_config(config)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # As large as in trained models, so that texts differ, and nothing zero, so that a forgotten bias shows.
            is_word_table = name.endswith(("word_embeddings.weight", "tok_embeddings.weight"))
            parameter.normal_(std=1.0 if is_word_table else 0.2, generator=generator)
            if "norm" in name.lower() and name.endswith("weight"):
                parameter.add_(1.0)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def _tiny_tokenizer(family: str):
    import transformers

    words = sorted({word.strip(".,;") for sentence in SENTENCES for word in sentence.split()})
    letters = [chr(code) for code in range(33, 127)]
    if family in ("bert", "distilbert", "electra", "mpnet"):
        general = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
        special = ["<s>", "<pad>", "</s>", "[UNK]", "<mask>"] if family == "mpnet" else general
        lowered = [word.lower() for word in words]
        pieces = dict.fromkeys([*special, *letters, *(f"##{letter}" for letter in letters), *lowered])
        classes = {"distilbert": "DistilBertTokenizer", "mpnet": "MPNetTokenizer"}
        tokenizer_class = getattr(transformers, classes.get(family, "BertTokenizer"))
        return tokenizer_class(vocab={piece: index for index, piece in enumerate(pieces)}, model_max_length=96)
    if family in ("roberta", "modernbert"):
        return _byte_level_tokenizer(family)
    special = {
        "albert": ["<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]"],
        "deberta-v2": ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"],
        "xlm-roberta": ["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
    }[family]
    classes = {"albert": "AlbertTokenizer", "deberta-v2": "DebertaV2Tokenizer", "xlm-roberta": "XLMRobertaTokenizer"}
    pieces = [(piece, 0.0) for piece in special]
    pieces += [(piece, -9.0) for piece in ("▁", *letters)] + [(f"▁{word}", -5.0) for word in words]
    return getattr(transformers, classes[family])(vocab=pieces, model_max_length=96)


def _byte_level_tokenizer(family: str):
    from tokenizers import ByteLevelBPETokenizer, Tokenizer
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast, RobertaTokenizer

    roberta = {"bos": "<s>", "pad": "<pad>", "eos": "</s>", "unk": "<unk>", "mask": "<mask>"}
    names = roberta if family == "roberta" else {name: f"[{name.upper()}]" for name in roberta}
    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator(SENTENCES, vocab_size=400, special_tokens=list(names.values()), show_progress=False)
    if family == "roberta":
        state = json.loads(trained.to_str())["model"]
        merges = [tuple(merge) for merge in state["merges"]]
        return RobertaTokenizer(vocab=state["vocab"], merges=merges, model_max_length=96)
    backend, first, last = Tokenizer.from_str(trained.to_str()), names["bos"], names["eos"]
    backend.post_processor = TemplateProcessing(
        single=f"{first} $A {last}",
        special_tokens=[(token, backend.token_to_id(token)) for token in (first, last)],
    )
    tokens = {f"{name}_token": token for name, token in names.items()}
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, model_max_length=96, cls_token=first, sep_token=last, **tokens
    )
