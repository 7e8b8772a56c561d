"""The Prompt Processor has the paper's layers, and its ablations do what their table says."""

import json
from pathlib import Path

import jaxtyping
import pytest
import torch
from torch import nn

from diffrestorer.config.degradations import DEGRADATIONS
from diffrestorer.models.components import (
    ModelFolderError,
    load_component,
    read_classes,
    save_component,
)
from diffrestorer.models.prompt_processor import PromptProcessor


def layers(branch: nn.Module) -> list[type[nn.Module]]:
    return [type(layer) for layer in branch]


def test_shapes_are_the_paper_s_by_default() -> None:
    prompts = PromptProcessor()(torch.randn(3, 768))
    assert prompts.clip_embedding.shape == (3, 768)
    assert prompts.semantic_embedding.shape == (3, 1, 768), "one cross-attention token"
    assert prompts.degradation_embedding.shape == (3, 256)
    assert prompts.degradation_logits.shape == (3, len(DEGRADATIONS)) == (3, 8)


def test_layer_counts_are_the_paper_s() -> None:
    hidden = [nn.Linear, nn.LayerNorm, nn.LeakyReLU]
    processor = PromptProcessor()
    assert layers(processor.semantic_branch) == [*hidden, *hidden, nn.Linear]
    assert layers(processor.degradation_branch) == [*hidden, nn.Linear]
    assert type(processor.classifier) is nn.Linear
    linear = {
        name: tuple(m.weight.shape) for name, m in processor.named_modules() if isinstance(m, nn.Linear)
    }
    assert list(linear.values()) == [(768, 768)] * 3 + [(512, 768), (256, 512)] + [(8, 256)]


def test_classifier_reads_the_degradation_embedding() -> None:
    processor = PromptProcessor(12, 10, 9, 6)
    prompts = processor(torch.randn(2, 12))
    assert torch.equal(prompts.degradation_logits, processor.classifier(prompts.degradation_embedding))
    assert torch.equal(
        prompts.degradation_embedding, processor.degradation_branch(prompts.clip_embedding)
    )
    assert torch.equal(
        prompts.semantic_embedding[:, 0], processor.semantic_branch(prompts.clip_embedding)
    )


def test_no_semantic_hands_clip_s_embedding_on() -> None:
    processor = PromptProcessor(12, 12, 9, 6, semantic=False)
    embedding = torch.randn(2, 12)
    assert torch.equal(processor(embedding).semantic_embedding, embedding[:, None])
    assert not list(processor.semantic_branch.parameters())


@pytest.mark.parametrize("training", [True, False])
def test_no_degradation_gives_zeros_in_training_and_test(training: bool) -> None:
    processor = PromptProcessor(12, 10, 9, 6, degradation=False).train(training)
    first, second = processor(torch.randn(2, 12)), processor(torch.randn(2, 12))
    assert torch.equal(first.degradation_embedding, torch.zeros(2, 6))
    assert torch.equal(first.degradation_logits, second.degradation_logits)
    assert not torch.equal(first.semantic_embedding, second.semantic_embedding), (
        "the semantic branch stays"
    )


def test_no_semantic_refuses_two_widths() -> None:
    with pytest.raises(ValueError, match=r"clip_dim \(12\) must equal semantic_dim \(10\)"):
        PromptProcessor(12, 10, semantic=False)


def test_batched_embeddings_only() -> None:
    with pytest.raises(jaxtyping.TypeCheckError):
        PromptProcessor(12, 10, 9, 6)(torch.randn(12))


def test_what_has_no_clear_degradation_is_taken_for_clean() -> None:
    """P_D alone is replaced, of the images alone whose degradations are all below the threshold."""
    processor = PromptProcessor(12, 10, 9, 6, classes=["noise", "clean", "haze"]).requires_grad_(False)
    embeddings = torch.randn(16, 12, generator=torch.Generator().manual_seed(0))
    processor.record_prototypes(embeddings[:3], torch.tensor([0, 1, 2]))
    prompts = processor(embeddings)
    probable = prompts.degradation_logits.softmax(dim=-1)[:, [0, 2]].amax(dim=1)
    threshold = float(probable.median()) + 1e-6

    restrained = processor.restrain(prompts, threshold)
    clear = probable >= threshold
    assert 0 < clear.sum() < 16
    rows = restrained.degradation_embedding
    assert torch.equal(rows[clear], prompts.degradation_embedding[clear])
    assert torch.equal(rows[~clear], processor.prototype("clean").expand(int((~clear).sum()), -1))
    assert restrained.degradation_logits is prompts.degradation_logits
    assert restrained.semantic_embedding is prompts.semantic_embedding
    assert torch.equal(
        processor.restrain(prompts, 0.0).degradation_embedding, prompts.degradation_embedding
    )
    assert (
        processor.restrain(prompts, 1.0).degradation_embedding == processor.prototype("clean")
    ).all()


@pytest.mark.parametrize("lacks", ["the class", "prototypes", "the class's prototype"])
def test_a_model_that_knows_no_clean_photos_reads_all_as_they_are(lacks: str) -> None:
    classes = ["noise", "haze", "rain" if lacks == "the class" else "clean"]
    processor = PromptProcessor(12, 10, 9, 6, classes=classes).requires_grad_(False)
    embeddings = torch.randn(4, 12)
    if lacks != "prototypes":
        labels = torch.tensor([0, 1, 2, 2] if lacks == "the class" else [0, 1, 1, 0])
        processor.record_prototypes(embeddings, labels)
    prompts = processor(embeddings)
    assert torch.equal(
        processor.restrain(prompts, 1.0).degradation_embedding, prompts.degradation_embedding
    )


def test_prototypes_are_means_of_the_degradation_embedding() -> None:
    processor = PromptProcessor(12, 10, 9, 6)
    embeddings = torch.randn(5, 12)
    with torch.no_grad():
        processor.record_prototypes(embeddings, torch.tensor([0, 7, 7, 0, 7]))
        expected = processor(embeddings).degradation_embedding
    torch.testing.assert_close(processor.prototype("noise"), expected[[0, 3]].mean(0, keepdim=True))
    torch.testing.assert_close(processor.prototype("jpeg"), expected[[1, 2, 4]].mean(0, keepdim=True))
    with pytest.raises(ValueError, match="no prototype of rain"):
        processor.prototype("rain")

    # A class that a later run sees no example of keeps its own.
    noise = processor.prototype("noise").clone()
    processor.record_prototypes(embeddings, torch.tensor([2, 7, 7, 2, 7]))
    assert torch.equal(processor.prototype("noise"), noise)
    assert processor.prototype("haze").any()


def test_classes_are_the_model_s_own() -> None:
    processor = PromptProcessor(12, 10, 9, 6, classes=["noise", "sandstorm", "clean"])
    assert processor.classes == ("noise", "sandstorm", "clean")
    assert processor(torch.randn(2, 12)).degradation_logits.shape == (2, 3)
    embeddings = torch.randn(3, 12)
    with torch.no_grad():
        processor.record_prototypes(embeddings, torch.tensor([1, 1, 2]))
        expected = processor(embeddings).degradation_embedding
    assert processor.class_prototypes.shape == (3, 6)
    torch.testing.assert_close(processor.prototype("sandstorm"), expected[:2].mean(0, keepdim=True))
    torch.testing.assert_close(processor.prototype("clean"), expected[2:])
    with pytest.raises(
        ValueError, match=r"one of noise, sandstorm, clean, not 'sandstrom', did you mean 'sandstorm'"
    ):
        processor.prototype("sandstrom")


def test_a_folder_keeps_its_classes(tmp_path: Path) -> None:
    """Saved and loaded, and checked for what would not fit."""
    processor = PromptProcessor(12, 10, 9, 6, classes=["clean", "noise"])
    processor.record_prototypes(torch.randn(2, 12), torch.tensor([0, 1]))
    save_component(processor, tmp_path / "prompt_processor", torch.float32)
    loaded = load_component(tmp_path / "prompt_processor")
    assert isinstance(loaded, PromptProcessor)
    assert loaded.classes == read_classes(tmp_path) == ("clean", "noise")
    assert torch.equal(loaded.class_prototypes, processor.class_prototypes)

    path = tmp_path / "prompt_processor" / "config.json"
    config = json.loads(path.read_text())
    for classes, message in (
        (["noise"], "does not fit its config.json"),
        (["clean"], "classes names clean alone"),
        (["noise", "noise"], "classes names noise twice"),
        (["clean", "Sand Storm"], "classes=Sand Storm is not valid"),
        ([], "classes is empty"),
    ):
        path.write_text(json.dumps({**config, "classes": classes}))
        with pytest.raises(ModelFolderError, match=message):
            load_component(tmp_path / "prompt_processor")
