"""The tiers against the published examples: what a baseline says, the example said, or the difference is declared."""

from pathlib import Path

import pytest
import yaml
from refresh import OF_A_RUN, tiers_readme

from patchlib.parameters import ARCHITECTURES

ROOT = Path(__file__).parents[1]
EXAMPLES = yaml.safe_load((ROOT / "tools" / "examples.yaml").read_text())
# Names a run or the machine it's on, or has no meaning in the examples, which have neither Muon nor a warm-up.
NO_HYPERPARAMETERS = OF_A_RUN | {"adamw_ratio", "warmup_epochs"}


def tier(architecture, name):
    """A tier as a run has it: what its file leaves out is the schema's default."""
    values = yaml.safe_load((ROOT / "notebooks" / "tiers" / f"{architecture}-{name}.yaml").read_text())
    return ARCHITECTURES[architecture](**values)


@pytest.mark.parametrize("architecture", EXAMPLES)
def test_a_baseline_is_its_example_or_says_where_it_is_not(architecture):
    example, baseline = EXAMPLES[architecture], tier(architecture, "baseline").model_dump()
    assert baseline["learning_rate"] * baseline["weight_decay"] == pytest.approx(example["decay"], rel=1e-3)
    names = set(ARCHITECTURES[architecture].model_fields) - NO_HYPERPARAMETERS - {"weight_decay"}
    assert names == set(example["values"]), "the transcription names every hyperparameter"
    others = {name for name in names if baseline[name] != example["values"][name]}
    assert others <= set(example["differences"])


def test_every_architecture_but_the_yardstick_has_an_example():
    assert set(EXAMPLES) <= set(ARCHITECTURES)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_other_tiers_are_of_the_baselines_size(architecture):
    """No more parameters, the same data and depth, patches and channels in the blocks as many."""
    from patchlib import models

    build, sizes = getattr(models, architecture), []
    for name in ("baseline", "tuned", "fast"):
        values = tier(architecture, name)
        classes = {"cifar10": 10, "cifar100": 100}[values.dataset]
        model = build((32, 32, 3), classes, **values.arguments(build))
        blocks = [layer.output.shape[1:] for layer in model.layers if layer.name.startswith("block_")]
        token = int("token" in {layer.name for layer in model.layers})  # no patch
        blocks = [(*places[:-1], places[-1] - token, channels) for *places, channels in blocks]
        sizes.append((model.count_params(), (values.dataset, values.depth, blocks)))
    (most, same), *others = sizes
    for count, alike in others:
        assert count <= most and alike == same


def test_the_readme_of_the_tiers_is_made_from_them():
    assert (ROOT / "notebooks" / "tiers" / "README.md").read_text() == tiers_readme(), "run `make refresh`"
