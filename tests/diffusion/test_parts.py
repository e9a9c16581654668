"""The parts of a model: by hand count for the UNet, and what a model's own parts must be."""

import pytest
import torch
from torch import nn

from fedddpm_app.config import ConfigError, default_run_config, load_config
from fedddpm_app.diffusion.parts import BOTTLENECK, DECODER, ENCODER, parts
from fedddpm_app.diffusion.unet import create_unet
from tests.conftest import ROOT


def conv(inputs, outputs, size=3):
    return inputs * outputs * size**2 + outputs


def linear(inputs, outputs):
    return inputs * outputs + outputs


def norm(channels):
    return 2 * channels


def resnet(inputs, outputs, embedding=64):
    shortcut = conv(inputs, outputs, 1) if inputs != outputs else 0
    own = norm(inputs) + conv(inputs, outputs) + linear(embedding, outputs) + norm(outputs) + conv(outputs, outputs)
    return own + shortcut


# The default UNet: channels 16 and 32, one residual block per level, grey images, no attention; the time embedding
# goes from 16 to 4 x 16 numbers. A block of the decoder has one residual block more, each with a skip connection.
HAND_COUNT = {
    ENCODER: conv(1, 16) + linear(16, 64) + linear(64, 64) + resnet(16, 16) + conv(16, 16) + resnet(16, 32),
    BOTTLENECK: 2 * resnet(32, 32),
    DECODER: resnet(32 + 32, 32)
    + resnet(32 + 16, 32)
    + conv(32, 32)
    + resnet(32 + 16, 16)
    + resnet(16 + 16, 16)
    + norm(16)
    + conv(16, 1),
}


def test_the_parts_of_the_default_unet_by_hand_count():
    config = load_config(default_run_config(ROOT))
    model = create_unet(config.unet, config.data, 0)
    found, counts = parts(model), dict.fromkeys(HAND_COUNT, 0)
    for name, tensor in model.state_dict().items():
        counts[found[name]] += tensor.numel()
    assert counts == HAND_COUNT
    assert list(found) == list(model.state_dict())


def test_attention_and_class_embedding_have_a_part():
    more = {"class-conditional": True, "unet-attention-resolutions": "4,8"}
    config = load_config(default_run_config(ROOT) | more)
    found = parts(create_unet(config.unet, config.data, 0))
    assert found["class_embedding.weight"] == ENCODER
    of_attention = {part for name, part in found.items() if "attentions" in name}
    assert of_attention == {ENCODER, BOTTLENECK, DECODER}


class Own(nn.Module):
    """Three weights whose parts the test gives."""

    def __init__(self, found, *, tied=False):
        super().__init__()
        self.a, self.b, self.c = (nn.Parameter(torch.zeros(1)) for _ in range(3))
        if tied:
            self.d = self.a
        self.found = found

    def parts(self):
        return self.found


ALL = {"a": ENCODER, "b": BOTTLENECK, "c": DECODER}


def test_a_model_gives_its_own_parts_in_the_order_of_its_weights():
    assert list(parts(Own(dict(reversed(ALL.items())))).items()) == list(ALL.items())


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (nn.Linear(1, 1), r"the parts of a Linear are not known: give the model a method parts\(\)"),
        (Own({"a": ENCODER, "c": DECODER}), "are not those of its weights, for example b"),
        (Own(ALL | {"e": DECODER}), "are not those of its weights, for example e"),
        (Own(ALL | {"b": "middle"}), '"middle" is not a part of a Own: use one of encoder, bottleneck, decoder'),
        (Own(ALL | {"b": DECODER}), "has no bottleneck"),
        (Own(ALL | {"d": DECODER}, tied=True), "a and d of a Own are one parameter, but are in the parts encoder and"),
    ],
    ids=["unknown", "incomplete", "too many", "odd", "empty", "tied"],
)
def test_parts_that_are_not_complete_and_disjoint_are_refused(model, reason):
    with pytest.raises(ConfigError, match=reason):
        parts(model)


def test_a_tied_parameter_in_one_part_is_accepted():
    assert parts(Own(ALL | {"d": ENCODER}, tied=True))["d"] == ENCODER
