"""The embedded tool's network: click maps, places, and rows that do not depend on each other."""

import numpy as np
import torch

from ibisagent.tools.embedded_model import (
    NARROW,
    NO_MASK,
    OWN_LOGITS,
    WIDE,
    EmbeddedNetwork,
    click_maps,
    places,
)


def test_click_maps_are_gaussians_of_both_signs():
    clicks = torch.tensor([[[0.25, 0.5, 1.0], [0.75, 0.5, -1.0], [0.0, 0.0, 0.0]]])
    maps = click_maps(clicks, 64)
    centre = (np.arange(64) + 0.5) / 64
    for channel, x, sigma in ((0, 0.25, NARROW), (1, 0.25, WIDE), (2, 0.75, NARROW), (3, 0.75, WIDE)):
        expected = np.exp(-((centre[None] - x) ** 2 + (centre[:, None] - 0.5) ** 2) / (2 * sigma**2))
        np.testing.assert_allclose(maps[0, channel].numpy(), expected, atol=1e-5)
    newest = maps[0, 4].numpy()
    assert newest.min() < -0.85  # the last click is negative
    assert newest.max() <= 0
    assert click_maps(torch.zeros(2, 1, 3), 8).abs().max() == 0


def test_rows_of_one_picture_are_decoded_as_if_alone():
    torch.manual_seed(0)
    network = EmbeddedNetwork(("a", "b")).eval()
    image = torch.randn(2, 5, 64, 64)
    clicks = torch.rand(4, 2, 3)
    previous = torch.randn(4, 1, 32, 32)
    kind, name = torch.tensor([NO_MASK, OWN_LOGITS, OWN_LOGITS, NO_MASK]), torch.tensor([0, 1, 2, 2])
    with torch.inference_mode():
        together, quality = network.decode(network.encode(image), clicks, previous, kind, name)
        for i in range(4):
            alone, score = network.decode(
                network.encode(image[i // 2][None]),
                clicks[i][None],
                previous[i][None],
                kind[i][None],
                name[i][None],
            )
            torch.testing.assert_close(alone[0], together[i], atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(score[0], quality[i], atol=1e-4, rtol=1e-4)


def test_places_span_the_valid_part():
    valid = torch.zeros(1, 1, 4, 8)
    valid[:, :, :2, :4] = 1
    x, y, x2, y2, xy, known, sided_x = places(valid, valid)[0].numpy()
    np.testing.assert_allclose(x[0], [-0.75, -0.25, 0.25, 0.75, 0, 0, 0, 0])
    np.testing.assert_allclose(y[:, 0], [-0.5, 0.5, 0, 0])
    np.testing.assert_allclose(x2[0, :4], np.square(x[0, :4]) - 1 / 3, rtol=1e-6)
    np.testing.assert_allclose(y2[:2, 0], np.square(y[:2, 0]) - 1 / 3, rtol=1e-6)
    np.testing.assert_allclose(xy, x * y, atol=1e-7)
    assert (known == valid[0, 0].numpy()).all() and (sided_x == x).all()
    assumed = places(valid, torch.zeros_like(valid))[0].numpy()
    assert (assumed[5:] == 0).all() and (assumed[:5] == [x, y, x2, y2, xy]).all()


def test_steps_by_leaves_give_the_gradients_of_one_pass():
    """Training back-propagates rounds into detached copies; the sum must be the true gradient."""
    torch.manual_seed(0)
    network = EmbeddedNetwork(("a",)).eval()
    image, previous = torch.randn(1, 5, 32, 32), torch.zeros(2, 1, 16, 16)
    arguments = (torch.rand(2, 1, 3), previous, torch.full((2,), NO_MASK), torch.tensor([0, 1]))
    weight = network.encoder.stem[0].weight

    def loss(features):
        logits, quality = network.decode(features, *arguments)
        return logits.square().mean() + quality.mean()

    loss(network.encode(image)).backward()
    expected = weight.grad.clone()
    weight.grad = None
    features = network.encode(image)
    leaves = features.leaves()
    loss(leaves).backward()
    grads = [t.grad if t.grad is not None else torch.zeros_like(t) for t in leaves.tensors()]
    torch.autograd.backward(features.tensors(), grads)
    torch.testing.assert_close(weight.grad, expected)
