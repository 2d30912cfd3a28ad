"""The network of the embedded tool: encode a picture once, then one mask per click or name.

Frame. A picture is scaled so that its longest side (in millimetres) has `side` pixels and lies in
the top left of a `side` x `side` square; what remains is zero. The plane `valid` is 1 where the
picture lies, `sided` too if its file says which side of the patient is where: a picture that does
not say may be mirrored. Clicks and logits refer to that square: x right, y down, both in [0, 1];
logits have half its resolution.

The encoder knows neither clicks nor name. The decoder adds what the prompts say to its features:
Gaussian maps of both signs, the previous mask, how much every place looks like the clicked ones
(cosine of learned features), and the map of the target's name. GroupNorm in the decoder, since
the statistics of "no mask yet" and "nearly done" differ.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn
from torch.nn import functional as F

NARROW = 3.0 / 256  # click maps' standard deviations, in frame sides
WIDE = 16.0 / 256
NO_MASK, OWN_LOGITS, START_MASK = 0, 1, 2  # what `previous` holds, per row


@dataclass(frozen=True)
class Features:
    """What is kept of B pictures: B x channels x grid, at strides 4 (detail too), 8 and 16."""

    detail: Tensor  # B x 32 at stride 4: the stride-2 features, four places in one
    stride4: Tensor
    stride8: Tensor
    stride16: Tensor
    look: Tensor  # B x 16 at stride 4, unit length: what a place looks like
    names: Tensor  # B x names at stride 4: logits of every known target

    def leaves(self) -> Features:
        """Detached copies that gather gradients, so that rounds can be back-propagated one by one."""
        return Features(*(getattr(self, f.name).detach().requires_grad_() for f in fields(self)))

    def tensors(self) -> list[Tensor]:
        """All tensors in field order."""
        return [getattr(self, f.name) for f in fields(self)]


def _norm_conv(inputs: int, outputs: int, stride: int = 1, size: int = 3) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs))


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = _norm_conv(width, width)
        self.second = _norm_conv(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.second(F.relu(self.first(x))))


class _GlobalContext(nn.Module):
    """Self-attention over the stride-32 grid, with learned positions."""

    def __init__(self, width: int, grid: int = 8, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.position = nn.Parameter(torch.randn(1, width, grid, grid) * 0.02)
        self.norm = nn.GroupNorm(1, width)
        self.qkv = nn.Conv2d(width, 3 * width, 1)
        self.out = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        batch, width, height, _ = x.shape
        position: Tensor = self.position
        if position.shape[-1] != height:
            position = F.interpolate(position, size=(height, height), mode="bilinear", align_corners=False)
        tokens = self.qkv(self.norm(x + position)).reshape(batch, 3, self.heads, width // self.heads, -1)
        query, key, value = tokens.transpose(-1, -2).unbind(1)
        mixed = F.scaled_dot_product_attention(query, key, value).transpose(-1, -2)
        return x + self.out(mixed.reshape(x.shape))


class Encoder(nn.Module):
    """Residual network with a feature pyramid: B x 5 x side x side (RGB, valid, sided) to Features."""

    def __init__(self, names: int) -> None:
        super().__init__()
        self.stem = _norm_conv(4, 16, stride=2)
        self.down4 = nn.Sequential(_norm_conv(16, 32, stride=2), nn.ReLU(), _Residual(32))
        self.down8 = nn.Sequential(_norm_conv(32, 64, stride=2), nn.ReLU(), _Residual(64), _Residual(64))
        self.down16 = nn.Sequential(
            _norm_conv(64, 128, stride=2), nn.ReLU(), *[_Residual(128) for _ in range(3)]
        )
        self.down32 = nn.Sequential(
            _norm_conv(128, 224, stride=2), nn.ReLU(), _Residual(224), _Residual(224), _GlobalContext(224)
        )
        self.top = nn.Conv2d(224, 96, 1)
        self.side16, self.side8, self.side4 = (
            nn.Conv2d(128, 96, 1),
            nn.Conv2d(64, 48, 1),
            nn.Conv2d(32, 32, 1),
        )
        self.up16, self.up8 = nn.Conv2d(96, 48, 1), nn.Conv2d(48, 32, 1)
        self.place16, self.place8, self.place4 = _place(96), _place(48), _place(32)
        self.smooth16, self.smooth8 = _norm_conv(96, 96), _norm_conv(48, 48)
        self.smooth4 = _norm_conv(32, 48)
        self.detail = nn.Conv2d(64, 32, 1)
        self.fuse4 = nn.Conv2d(48, 32, 1)
        self.look = nn.Conv2d(48, 16, 1)
        self.names = nn.Conv2d(48, names, 1)

    def forward(self, image: Tensor) -> Features:
        c2 = F.relu(self.stem(image[:, :4]))
        c4 = self.down4(c2)
        c8 = self.down8(c4)
        c16 = self.down16(c8)
        c32 = self.down32(c16)
        place4 = places(*F.avg_pool2d(image[:, 3:], 4).split(1, dim=1))
        place8 = F.avg_pool2d(place4, 2)
        place16 = F.avg_pool2d(place8, 2)
        p16 = F.relu(self.smooth16(self.side16(c16) + _double(self.top(c32)) + self.place16(place16)))
        p8 = F.relu(self.smooth8(self.side8(c8) + _double(self.up16(p16)) + self.place8(place8)))
        p4 = F.relu(self.smooth4(self.side4(c4) + _double(self.up8(p8)) + self.place4(place4)))
        look = F.normalize(self.look(p4), dim=1)
        return Features(self.detail(F.pixel_unshuffle(c2, 2)), self.fuse4(p4), p8, p16, look, self.names(p4))


def _place(width: int) -> nn.Conv2d:
    """What a place means on its own: without it, left and right are learned very slowly."""
    layer = nn.Conv2d(7, width, 1, bias=False)
    nn.init.zeros_(layer.weight)
    return layer


def places(valid: Tensor, sided: Tensor) -> Tensor:
    """B x 7 x h x w: x, y in [-1, 1] over the valid part, their squares and product; 0 outside.

    Then 1 and x again, where sides are known. `valid` and `sided` are B x 1 x h x w.
    """
    inside = (valid > 0).float()
    width = inside.sum(3, keepdim=True).amax(2, keepdim=True).clamp(min=1)
    height = inside.sum(2, keepdim=True).amax(3, keepdim=True).clamp(min=1)
    x = (2 * inside.cumsum(3) - 1) / width - 1
    y = (2 * inside.cumsum(2) - 1) / height - 1
    known = (sided > 0).float()
    return torch.cat([x, y, x * x - 1 / 3, y * y - 1 / 3, x * y, known, x * known], dim=1) * inside


def _spread(x: Tensor, feature: Tensor) -> Tensor:
    """Add each picture's feature (B) to all of its rows (N = B x rows per picture)."""
    rows = x.view(len(feature), -1, *x.shape[1:])
    return (rows + feature[:, None]).flatten(0, 1)


def _double(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)


class _Modulated(nn.Module):
    """GroupNorm, shift (and scale) from the condition, ReLU, 3x3 convolution."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1, scaled: bool = False) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(inputs // 8, inputs)
        self.conv = nn.Conv2d(inputs, outputs, 3, stride, 1)
        self.scaled = scaled
        self.conditions = inputs * (2 if scaled else 1)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        x = self.norm(x)
        if self.scaled:
            shift, scale = condition[:, :, None, None].chunk(2, dim=1)
            x = x * (1 + scale) + shift
        else:
            x = x + condition[:, :, None, None]
        return self.conv(F.relu(x, inplace=True))


class Decoder(nn.Module):
    """A U-Net from stride 4 to 16 and back to 2, steered by name and state."""

    def __init__(self, names: int) -> None:
        super().__init__()
        self.name = nn.Embedding(names + 1, 48)  # the last row: no name is given
        nn.init.normal_(self.name.weight, std=0.3)
        self.state = nn.Linear(5, 48)
        self.prompt = nn.Conv2d(4 + 5 + 2 + 1, 32, 3, padding=1)
        self.blocks = nn.ModuleDict(
            {
                "enter4": _Modulated(32, 32),
                "down8": _Modulated(32, 48, stride=2),
                "mix8": _Modulated(48, 48, scaled=True),
                "down16": _Modulated(48, 96, stride=2, scaled=True),
                "mix16": _Modulated(96, 96, scaled=True),
                "more16": _Modulated(96, 96, scaled=True),
                "up8": _Modulated(48, 48, scaled=True),
                "up4": _Modulated(32, 32),
                "last4": _Modulated(32, 32),
                "fine4": _Modulated(32, 32),
            }
        )
        modulation = nn.Linear(96, sum(b.conditions for b in self._blocks()))
        nn.init.zeros_(modulation.weight)
        nn.init.zeros_(modulation.bias)
        self.condition = nn.Sequential(nn.Linear(96, 96), nn.SiLU(), modulation)
        self.narrow8, self.narrow4 = nn.Conv2d(96, 48, 1), nn.Conv2d(48, 32, 1)
        self.mask = nn.Conv2d(32, 4, 3, padding=1)  # four places at stride 2 from each at stride 4
        if self.mask.bias is not None:
            nn.init.constant_(self.mask.bias, -1.0)
        self.quality = nn.Sequential(nn.Linear(96 + 32 + 5 + 4, 64), nn.ReLU(), nn.Linear(64, 1))

    def _blocks(self) -> list[_Modulated]:
        return [block for block in self.blocks.values() if isinstance(block, _Modulated)]

    def forward(
        self, features: Features, clicks: Tensor, previous: Tensor, kind: Tensor, name: Tensor
    ) -> tuple[Tensor, Tensor]:
        state = torch.stack(
            [
                (kind == OWN_LOGITS).float(),
                (kind == START_MASK).float(),
                torch.log1p((clicks[:, :, 2] > 0).sum(1).float()),
                torch.log1p((clicks[:, :, 2] < 0).sum(1).float()),
                (name < self.name.num_embeddings - 1).float(),
            ],
            dim=1,
        )
        vector = self.condition(torch.cat([self.name(name), self.state(state)], dim=1))
        parts = iter(vector.split([b.conditions for b in self._blocks()], dim=1))
        step = {key: (block, next(parts)) for key, block in self.blocks.items()}

        def run(key: str, x: Tensor) -> Tensor:
            block, condition = step[key]
            return block(x, condition)

        x4 = self.prompt(self._prompt_maps(features, clicks, previous, kind, name))
        x4 = _spread(x4, features.stride4)
        x4 = x4 + run("enter4", x4)
        x8 = _spread(run("down8", x4), features.stride8)
        x8 = x8 + run("mix8", x8)
        x16 = _spread(run("down16", x8), features.stride16)
        x16 = x16 + run("mix16", x16)
        x16 = x16 + run("more16", x16)
        y8 = x8 + _double(self.narrow8(x16))
        y8 = y8 + run("up8", y8)
        y4 = x4 + _double(self.narrow4(y8))
        y4 = y4 + run("up4", y4)
        y4 = y4 + run("last4", y4)
        fine = run("fine4", _spread(y4, features.detail))
        logits = F.pixel_shuffle(self.mask(F.relu(fine)), 2)
        return logits, self._quality(logits, x16, y4, state)

    def _prompt_maps(
        self, features: Features, clicks: Tensor, previous: Tensor, kind: Tensor, name: Tensor
    ) -> Tensor:
        """N x 12 at stride 4: previous mask (4), clicks (5), likeness (2), the name's map (1)."""
        grid = features.look.shape[-1]
        maps = click_maps(clicks, grid)
        shown = (torch.sigmoid(previous) - 0.5) * (kind != NO_MASK).float()[:, None, None, None]
        each = len(name) // len(features.look)
        picture = torch.arange(len(name), device=name.device) // each
        known = name < self.name.num_embeddings - 1
        column = name.clamp(max=features.names.shape[1] - 1)
        named = torch.tanh(features.names[picture, column] / 4) * known[:, None, None]
        named = named[:, None]
        likeness = _likeness(features.look.repeat_interleave(each, 0), clicks)
        return torch.cat([F.pixel_unshuffle(shown, 2), maps, likeness, named], dim=1)

    def _quality(self, logits: Tensor, x16: Tensor, y4: Tensor, state: Tensor) -> Tensor:
        """Logit of the expected IoU, from pooled features and from what the probabilities promise."""
        with torch.no_grad():
            probability = torch.sigmoid(logits)
            inside = (logits > 0).float()
            area = inside.mean((1, 2, 3))
            sure = (probability * inside).mean((1, 2, 3))
            missed = (probability * (1 - inside)).mean((1, 2, 3))
            promise = (sure + 1e-4) / (area + missed + 1e-4)
            facts = torch.stack([promise, torch.log(area + 1e-4), torch.log(missed + 1e-4), area], dim=1)
            weight = F.avg_pool2d(probability, 2).flatten(2) + 1e-4
            pooled = torch.bmm(weight / weight.sum(2, keepdim=True), y4.flatten(2).transpose(1, 2))[:, 0]
        return self.quality(torch.cat([x16.mean((2, 3)), pooled, state, facts], dim=1))[:, 0]


def click_maps(clicks: Tensor, grid: int) -> Tensor:
    """Maps of clicks: N x 5 x grid x grid in [-1, 1].

    `clicks` is N x C x 3 float (x, y, sign; sign 0 is padding), oldest first. Channels: positive
    narrow and wide, negative narrow and wide, and the newest click with its sign.
    """
    centres = (torch.arange(grid, device=clicks.device, dtype=torch.float32) + 0.5) / grid
    x, y, sign = clicks.unbind(2)
    maps = []
    for sigma in (NARROW, WIDE):
        across = torch.exp(-((centres - x[..., None]) ** 2) / (2 * sigma**2))
        down = torch.exp(-((centres - y[..., None]) ** 2) / (2 * sigma**2))
        for keep in (sign > 0, sign < 0):
            spots = (down * keep[..., None])[..., :, None] * across[..., None, :]
            maps.append(spots.amax(1))
    count = (sign != 0).sum(1)
    last = (count - 1).clamp(min=0)[:, None, None]
    sigma = 2 * NARROW
    x, y, sign = (clicks.gather(1, last.expand(-1, 1, 3)))[:, 0].unbind(1)
    across = torch.exp(-((centres - x[:, None]) ** 2) / (2 * sigma**2))
    down = torch.exp(-((centres - y[:, None]) ** 2) / (2 * sigma**2)) * sign[:, None]
    newest = down[:, :, None] * across[:, None, :]
    order = (maps[0], maps[2], maps[1], maps[3], newest)
    return torch.stack(order, dim=1)


def _likeness(look: Tensor, clicks: Tensor) -> Tensor:
    """N x 2: the largest cosine with a positive click's features, and with a negative one's."""
    places = clicks[:, :, None, :2] * 2 - 1
    sampled = F.grid_sample(look, places, mode="bilinear", align_corners=False, padding_mode="border")
    cosine = torch.einsum("ncp,nchw->nphw", sampled[..., 0], look)
    result = []
    for keep in (clicks[:, :, 2] > 0, clicks[:, :, 2] < 0):
        masked = cosine.masked_fill(~keep[:, :, None, None], -1.0).amax(1)
        result.append(torch.where(keep.any(1)[:, None, None], masked, torch.zeros_like(masked)))
    return torch.stack(result, dim=1)


class EmbeddedNetwork(nn.Module):
    """Encoder and decoder for the canonical targets `names`."""

    def __init__(self, names: tuple[str, ...]) -> None:
        super().__init__()
        self.names = names
        self.encoder = Encoder(len(names))
        self.decoder = Decoder(len(names))

    @property
    def no_name(self) -> int:
        """The row of the name embedding that stands for "no name given"."""
        return len(self.names)

    def encode(self, image: Tensor) -> Features:
        """Features of pictures: float32, B x 5 x side x side (normalised RGB; planes valid, sided)."""
        return self.encoder(image)

    def decode(
        self, features: Features, clicks: Tensor, previous: Tensor, kind: Tensor, name: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Mask logits (N x 1 x side/2 x side/2) and quality logits (N).

        Every picture has N / B rows, which stand together. `clicks` N x C x 3 with C >= 1 (x, y,
        sign; 0 pads), `previous` logits N x 1 x side/2 x side/2, `kind` N int64 (NO_MASK,
        OWN_LOGITS, START_MASK), `name` N int64 (or `no_name`).
        """
        return self.decoder(features, clicks, previous, kind, name)
