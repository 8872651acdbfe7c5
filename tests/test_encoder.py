"""SentenceEncoder end to end: its vectors, what it writes, and what its peers make of that."""

import json
import shutil

import naive
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoModel, AutoTokenizer

import simcse_kit
from simcse_kit import SentenceEncoder
from simcse_kit import encoder as encoder_module
from simcse_kit.data.files import sha256_of_files
from simcse_kit.locate import PACKAGED
from simcse_kit.pooling import POOLINGS

FAMILIES = ["albert", "bert", "deberta-v2", "distilbert", "electra", "modernbert", "mpnet", "roberta", "xlm-roberta"]
HEADS = ["none", "train-only", "kept"]


def open_encoder(name, **options):
    return SentenceEncoder.from_pretrained(name, device="cpu", **options)


def peer_vectors(directory, sentences):
    return SentenceTransformer(str(directory), device="cpu").encode(sentences)


@pytest.fixture
def bert(tiny_checkpoint, tmp_path):
    """A checkpoint of its own for a test that changes it."""
    return shutil.copytree(tiny_checkpoint("bert"), tmp_path / "bert")


def test_the_package_level_encode_opens_a_model_once(minilm, sentences, monkeypatch, tiny_checkpoint):
    encoder_module._opened.cache_clear()
    opened, open_it = [], SentenceEncoder.from_pretrained
    monkeypatch.setattr(SentenceEncoder, "from_pretrained", lambda name: opened.append(name) or open_it(name))
    for _ in range(2):
        assert naive.largest_difference(simcse_kit.encode(sentences), minilm.encode(sentences)) < 1e-5
        assert simcse_kit.encode(sentences[0], model=tiny_checkpoint("bert")).shape == (32,)
    assert opened == ["all-MiniLM-L6-v2", str(tiny_checkpoint("bert"))]
    with_options = simcse_kit.encode(sentences, model=minilm, normalize=False)
    assert naive.largest_difference(with_options, minilm.encode(sentences, normalize=False)) == 0


def test_local_models_are_opened_used_and_saved_without_a_connection(
    no_network, monkeypatch, tiny_checkpoint, tmp_path, capfd, sentences
):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    names = ["all-MiniLM-L6-v2", tiny_checkpoint("bert"), tiny_checkpoint("roberta")]
    capfd.readouterr()
    for name in names:
        encoder = open_encoder(name)
        encoder.save_pretrained(tmp_path)
        assert naive.largest_difference(open_encoder(tmp_path).encode(sentences), encoder.encode(sentences)) == 0
    assert capfd.readouterr() == ("", "")


# What is written, and what reads it.


def by_transformers(directory, encoder, sentences):
    """Vectors of plain transformers, pooled in loops; a head comes from the encoder, a pooler from transformers."""
    model, tokenizer = AutoModel.from_pretrained(directory), AutoTokenizer.from_pretrained(directory)
    model.eval()
    vectors = []
    for sentence in sentences:
        tokens = tokenizer(sentence, truncation=True, return_tensors="pt")
        with torch.no_grad():
            output = model(**tokens, output_hidden_states=True)
        states = [layer[0].numpy() for layer in output.hidden_states]
        head = encoder.head if encoder.keep_head else None
        if encoder.pooling == "cls_pooler" or (encoder.pooling == "cls" and head is not None):
            vector = output.pooler_output[0].numpy()
            head = head if encoder.pooling == "cls_pooler" else None
        else:
            vector = naive.pool(encoder.pooling, states, tokens["input_ids"][0].tolist(), tokenizer.mask_token_id)
        if head is not None:
            weight, bias = (parameter.detach().numpy() for parameter in head.linear.parameters())
            vector = np.tanh(weight @ vector + bias)
        vectors.append(vector)
    return np.stack(vectors)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_what_is_saved_opens_everywhere_with_equal_vectors(tiny_checkpoint, tmp_path, sentences, family, pooling, head):
    encoder = open_encoder(tiny_checkpoint(family), pooling=pooling)
    texts = [*sentences, "the cat sleeps and " * 60]
    bare = encoder.encode(texts)
    if head != "none":
        torch.manual_seed(1)
        encoder.add_head(keep=head == "kept")
        torch.nn.init.normal_(encoder.head.linear.weight, std=0.3)
        torch.nn.init.normal_(encoder.head.linear.bias, std=0.3)
    vectors = encoder.encode(texts)
    assert np.array_equal(vectors, bare) == (head != "kept")
    encoder.save_pretrained(tmp_path)
    assert naive.cosines(vectors, peer_vectors(tmp_path, texts)).min() > 0.99999
    assert naive.largest_difference(vectors, peer_vectors(tmp_path, texts)) < 1e-4
    assert naive.largest_difference(vectors, by_transformers(tmp_path, encoder, texts)) < 1e-4
    reopened = open_encoder(tmp_path)
    assert naive.largest_difference(vectors, reopened.encode(texts)) < 1e-6
    # A head behind the first token is the checkpoint's pooler from then on, as in SimCSE's supervised models.
    assert reopened.pooling == ("cls_pooler" if (pooling, head) == ("cls", "kept") else pooling)
    assert reopened.head_name == ("mlp" if head == "kept" and pooling != "cls" else "none")
    assert (reopened.normalize, reopened.max_length, reopened.dimension) == (False, 96, 32)


@pytest.mark.parametrize("pooling", ["mean", "first_last_mean"])
@pytest.mark.parametrize("family", FAMILIES)
def test_families_of_encoders(tiny_checkpoint, tmp_path, sentences, family, pooling):
    encoder = open_encoder(tiny_checkpoint(family), pooling=pooling)
    vectors = encoder.encode(sentences)
    alone = np.stack([encoder.encode(sentence) for sentence in sentences])
    assert naive.largest_difference(vectors, alone) < 1e-5
    encoder.normalize = True
    encoder.save_pretrained(tmp_path)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    assert naive.largest_difference(unit, peer_vectors(tmp_path, sentences)) < 1e-5
    assert naive.largest_difference(unit, open_encoder(tmp_path).encode(sentences)) < 1e-6
    if pooling == "mean":
        assert naive.largest_difference(vectors, peer_vectors(tiny_checkpoint(family), sentences)) < 1e-4


@pytest.mark.parametrize("family", FAMILIES)
def test_families_can_be_trained(tiny_checkpoint, family, sentences):
    """After encoding; without dropout as in evaluation; with a gradient for all that is said to be trained."""
    encoder = open_encoder(tiny_checkpoint(family), dropout=0.0)
    encoder.add_head(keep=True)
    vectors = encoder.encode(sentences[:2])
    encoder.train()
    tokens = encoder.tokenize(sentences[:2])
    width = max(len(ids) for ids in tokens)
    ids = torch.tensor([[*row, *[encoder.pad_id] * (width - len(row))] for row in tokens])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in tokens])
    trained = encoder(ids, mask)
    assert naive.largest_difference(trained.detach(), vectors) < 1e-5
    trained.square().sum().backward()
    # Distributed training waits for every gradient.
    assert [name for name, p in encoder.named_parameters() if p.requires_grad and p.grad is None] == []


@pytest.mark.parametrize("family", FAMILIES)
def test_texts_are_cut_where_the_positions_end(tiny_checkpoint, tmp_path, family):
    """The tokenizer knows no limit; the RoBERTa family counts positions from 2, of a table of 98."""
    directory = shutil.copytree(tiny_checkpoint(family), tmp_path / family)
    AutoTokenizer.from_pretrained(directory, model_max_length=int(1e30)).save_pretrained(directory)
    encoder = open_encoder(directory)
    assert encoder.max_length == 96
    assert len(encoder.tokenize(["the cat " * 100])[0]) == 96
    assert np.isfinite(encoder.encode("the cat " * 100)).all()


def test_poolers_are_trained_where_they_are_used(tiny_checkpoint):
    def trained(pooling):
        encoder = open_encoder(tiny_checkpoint("bert"), pooling=pooling)
        return {name for name, p in encoder.named_parameters() if p.requires_grad and "pooler" in name}

    assert trained("cls") == set()
    assert trained("cls_pooler") == {"backbone.pooler.dense.weight", "backbone.pooler.dense.bias"}


def test_a_head_that_only_trains_is_used_in_training_alone(tiny_checkpoint):
    encoder = open_encoder(tiny_checkpoint("bert"), dropout=0.0)
    ids = torch.tensor([[2, 50, 60, 3]])
    mask = torch.ones_like(ids)
    with torch.no_grad():
        bare = encoder(ids, mask)
        encoder.add_head(keep=False)
        torch.testing.assert_close(encoder(ids, mask), bare)
        torch.testing.assert_close(encoder.train()(ids, mask), encoder.head(bare))
        assert encoder.head_name == "none"
        encoder.keep_head = True
        torch.testing.assert_close(encoder.eval()(ids, mask), encoder.head(bare))
        assert encoder.head_name == "mlp"


def test_weights_are_written_in_float32_unless_asked(bert, tmp_path, sentences):
    encoder = open_encoder(bert, dtype="bfloat16")
    encoder.add_head(keep=True)
    assert encoder.dtype == encoder.head.linear.weight.dtype == torch.bfloat16
    assert encoder.encode(sentences).dtype == np.float32
    for asked, stored in ((None, torch.float32), ("float16", torch.float16)):
        encoder.save_pretrained(tmp_path / "saved", dtype=asked)
        weights = load_file(tmp_path / "saved" / "model.safetensors")
        head = load_file(tmp_path / "saved" / "2_Dense" / "model.safetensors")
        assert {tensor.dtype for tensor in (weights | head).values()} == {stored}
        assert AutoConfig.from_pretrained(tmp_path / "saved").dtype == stored
        assert open_encoder(tmp_path / "saved").dtype == torch.float32
    low = open_encoder(tmp_path / "saved", dtype="bfloat16")
    assert {parameter.dtype for parameter in low.parameters()} == {torch.bfloat16}
    assert naive.cosines(low.encode(sentences), encoder.encode(sentences)).min() > 0.999
    rounded = load_file(bert / "model.safetensors")["embeddings.word_embeddings.weight"].bfloat16()
    assert torch.equal(weights["embeddings.word_embeddings.weight"], rounded.half())


def test_the_dropout_asked_for_is_not_saved(bert, tmp_path):
    own = json.loads((bert / "config.json").read_text())
    encoder = open_encoder(bert, dropout=0.37)
    rates = {module.p for module in encoder.modules() if isinstance(module, torch.nn.Dropout)}
    assert rates == {0.37}
    encoder.save_pretrained(tmp_path / "saved")
    saved = json.loads((tmp_path / "saved" / "config.json").read_text())
    for key in ("hidden_dropout_prob", "attention_probs_dropout_prob"):
        assert saved[key] == own[key] == 0.1


def test_a_checkpoint_without_a_pooler_is_saved_without_one(bert, tmp_path, sentences):
    weights = load_file(bert / "model.safetensors")
    bare = {name: tensor for name, tensor in weights.items() if not name.startswith("pooler.")}
    save_file(bare, bert / "model.safetensors", metadata={"format": "pt"})
    encoder = open_encoder(bert, pooling="cls")
    encoder.save_pretrained(tmp_path / "plain")
    assert load_file(tmp_path / "plain" / "model.safetensors").keys() == bare.keys()
    encoder.add_head(keep=True)
    encoder.save_pretrained(tmp_path / "headed")
    written = load_file(tmp_path / "headed" / "model.safetensors")
    assert torch.equal(written["pooler.dense.weight"], encoder.head.linear.weight)
    assert open_encoder(tmp_path / "headed").pooling == "cls_pooler"


def test_saving_replaces_what_was_there(tiny_checkpoint, tmp_path, sentences):
    first = open_encoder(tiny_checkpoint("roberta"), pooling="mask")
    first.add_head(keep=True)
    first.normalize = True
    first.save_pretrained(tmp_path)
    prompts = {"prompts": {"query": "query: "}, "default_prompt_name": "query"}
    (tmp_path / "config_sentence_transformers.json").write_text(json.dumps(prompts))
    second = open_encoder(tiny_checkpoint("bert"), pooling="max")
    for _ in range(2):
        second.save_pretrained(tmp_path)
        for opened in (open_encoder(tmp_path), SentenceTransformer(str(tmp_path), device="cpu")):
            assert naive.largest_difference(opened.encode(sentences), second.encode(sentences)) < 1e-5


def test_an_encoder_can_be_saved_where_it_was_opened(bert, sentences):
    encoder = open_encoder(bert)
    before = encoder.encode(sentences)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.mul_(1.1)
    changed = encoder.encode(sentences)
    assert naive.largest_difference(changed, before) > 0.01
    encoder.save_pretrained(bert)
    assert naive.largest_difference(encoder.encode(sentences), changed) == 0
    assert naive.largest_difference(open_encoder(bert).encode(sentences), changed) == 0


def test_the_own_length_is_saved(bert, sentences):
    encoder = open_encoder(bert, max_length=12)
    encoder.save_pretrained(bert)
    assert open_encoder(bert).max_length == 12
    assert len(AutoTokenizer.from_pretrained(bert)(sentences[-1], truncation=True)["input_ids"]) == 12
    assert naive.largest_difference(peer_vectors(bert, sentences), encoder.encode(sentences)) < 1e-5
    assert open_encoder(bert, max_length=96).max_length == 96


def test_the_hash_is_that_of_the_weights(minilm, bert):
    assert minilm.weights_sha256 == PACKAGED["all-MiniLM-L6-v2"].sha256
    encoder = open_encoder(bert)
    assert encoder.weights_sha256 == sha256_of_files(bert / "model.safetensors")
    encoder.add_head(keep=True)
    encoder.save_pretrained(bert)
    hashes = {open_encoder(bert).weights_sha256}
    shutil.copytree(bert, bert / "checkpoints" / "step-1")
    (bert / "training_args.bin").touch()
    hashes.add(open_encoder(bert).weights_sha256)
    assert len(hashes) == 1
    torch.nn.init.ones_(encoder.head.linear.weight)
    encoder.save_pretrained(bert)
    assert open_encoder(bert).weights_sha256 not in hashes


def test_the_tokenizer_is_saved_without_the_cut_of_the_last_call(bert, tmp_path, sentences):
    encoder = SentenceEncoder.from_pretrained(bert)
    encoder.encode(sentences, max_length=5)
    encoder.save_pretrained(tmp_path / "saved")
    saved = Tokenizer.from_file(str(tmp_path / "saved" / "tokenizer.json"))
    assert saved.truncation is None and saved.padding is None


def test_prompts_and_similarity_of_the_model_that_was_opened_are_kept(bert, tmp_path):
    open_encoder(bert).save_pretrained(tmp_path / "first")
    conventions = {"prompts": {"query": "find: ", "passage": ""}, "similarity_fn_name": "dot"}
    file = tmp_path / "first" / "config_sentence_transformers.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **conventions}))
    open_encoder(tmp_path / "first").save_pretrained(tmp_path / "second")
    peer = SentenceTransformer(str(tmp_path / "second"), device="cpu")
    assert peer.prompts["query"] == "find: " and peer.similarity_fn_name == "dot"
    plain = SentenceTransformer(str(tmp_path / "second"), device="cpu").encode(["find: a cat"])
    assert naive.largest_difference(peer.encode(["a cat"], prompt_name="query"), plain) < 1e-6


@pytest.mark.parametrize(("family", "pooling"), [("bert", "cls"), ("bert", "mean"), ("distilbert", "cls")])
def test_a_kept_head_is_gone_on_with(tiny_checkpoint, tmp_path, sentences, family, pooling):
    encoder = open_encoder(tiny_checkpoint(family), pooling=pooling)
    encoder.add_head(keep=True)
    with torch.no_grad():
        encoder.head.linear.weight.mul_(10)
    encoder.save_pretrained(tmp_path)
    again = open_encoder(tmp_path, pooling=pooling)
    again.add_head(keep=True)
    assert torch.equal(again.head.linear.weight, encoder.head.linear.weight)
    assert naive.largest_difference(again.encode(sentences), encoder.encode(sentences)) < 1e-6
    again.save_pretrained(tmp_path)
    assert naive.largest_difference(open_encoder(tmp_path).encode(sentences), encoder.encode(sentences)) < 1e-6
    # One that only trains begins anew, and so does that of a checkpoint whose pooler is nobody's head.
    fresh = open_encoder(tmp_path, pooling=pooling)
    fresh.add_head(keep=False)
    assert not torch.equal(fresh.head.linear.weight, encoder.head.linear.weight)
