"""The tuned tiers' networks in plain PyTorch, in a process of their own: what patchlib's step is measured against.

The first argument is the JSON of ``Contender``'s; then it speaks as ``contender.py`` does. Images lie in memory,
prepared, as channels last; nothing is augmented, and AdamW steps, which is cheaper than the tiers' Muon.
"""

import json
import resource
import sys
import time

import torch
from torch import nn
from torch.nn import functional


class ConvMixer(nn.Sequential):
    def __init__(self, classes, dim=256, depth=8, kernel_size=5, patch_size=2):
        def activated(convolution):
            return nn.Sequential(convolution, nn.GELU(), nn.BatchNorm2d(dim))

        super().__init__(
            activated(nn.Conv2d(3, dim, patch_size, patch_size)),
            *(
                nn.Sequential(
                    Residual(activated(nn.Conv2d(dim, dim, kernel_size, groups=dim, padding="same"))),
                    activated(nn.Conv2d(dim, dim, 1)),
                )
                for _ in range(depth)
            ),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(dim, classes),
        )


class Residual(nn.Module):
    def __init__(self, branch):
        super().__init__()
        self.branch = branch

    def forward(self, x):
        return x + self.branch(x)


def mlp(dim, hidden):
    return nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim))


class Attention(nn.Module):
    def __init__(self, dim, heads, key_dim):
        super().__init__()
        self.heads, self.qkv, self.out = heads, nn.Linear(dim, 3 * heads * key_dim), nn.Linear(heads * key_dim, dim)

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.out(functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class CCT(nn.Module):
    def __init__(self, classes, dim=128, depth=2, heads=2, key_dim=64, mlp_dim=128, conv_dim=64):
        super().__init__()
        stages = [
            nn.Sequential(nn.Conv2d(a, b, 3, padding=1, bias=False), nn.ReLU(), nn.MaxPool2d(3, 2, 1))
            for a, b in ((3, conv_dim), (conv_dim, dim))
        ]
        self.tokenizer, self.position = nn.Sequential(*stages), nn.Parameter(torch.rand(64, dim) / 10)
        blocks = [
            nn.Sequential(
                Residual(nn.Sequential(nn.LayerNorm(dim), Attention(dim, heads, key_dim))),
                Residual(nn.Sequential(nn.LayerNorm(dim), mlp(dim, mlp_dim))),
            )
            for _ in range(depth)
        ]
        self.blocks, self.score = nn.Sequential(*blocks, nn.LayerNorm(dim)), nn.Linear(dim, 1)
        self.head = nn.Linear(dim, classes)

    def forward(self, images):
        x = self.blocks(self.tokenizer(images).flatten(2).transpose(1, 2) + self.position)
        return self.head((self.score(x).softmax(1) * x).sum(1))


class Patches(nn.Module):
    """Patches of 4 x 4 pixels, embedded; ``blocks``; the mean over patches."""

    def __init__(self, classes, blocks, dim=256, norm=True):
        super().__init__()
        self.embed, self.blocks = nn.Conv2d(3, dim, 4, 4), blocks
        self.norm, self.head = nn.LayerNorm(dim) if norm else nn.Identity(), nn.Linear(dim, classes)

    def forward(self, images):
        return self.head(self.norm(self.blocks(self.embed(images).flatten(2).transpose(1, 2))).mean(1))


class Mixer(nn.Module):
    def __init__(self, dim=256, tokens=64, tokens_dim=64, channels_dim=80):
        super().__init__()
        self.tokens_norm, self.tokens = nn.LayerNorm(dim), mlp(tokens, tokens_dim)
        self.channels = Residual(nn.Sequential(nn.LayerNorm(dim), mlp(dim, channels_dim)))

    def forward(self, x):
        return self.channels(x + self.tokens(self.tokens_norm(x).transpose(1, 2)).transpose(1, 2))


class Fourier(nn.Module):
    def __init__(self, dim=256, hidden=272):
        super().__init__()
        self.fourier_norm, self.mlp, self.norm = nn.LayerNorm(dim), mlp(dim, hidden), nn.LayerNorm(dim)

    def forward(self, x):
        x = self.fourier_norm(x + torch.fft.fft2(x.float()).real)
        return self.norm(x + self.mlp(x))


class Gated(nn.Module):
    def __init__(self, dim=256, tokens=64, hidden=528):
        super().__init__()
        self.expand = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, hidden), nn.GELU())
        self.norm, self.gate, self.project = (
            nn.LayerNorm(hidden // 2),
            nn.Linear(tokens, tokens),
            nn.Linear(hidden // 2, dim),
        )

    def forward(self, x):
        kept, gating = self.expand(x).chunk(2, -1)
        return x + self.project(kept * self.gate(self.norm(gating).transpose(1, 2)).transpose(1, 2))


class Positioned(nn.Module):
    def __init__(self, dim=256, tokens=64):
        super().__init__()
        self.table = nn.Parameter(torch.rand(tokens, dim) / 10)

    def forward(self, x):
        return x + self.table


NETWORKS = {
    "convmixer": lambda: ConvMixer(10),
    "cct": lambda: CCT(10),
    "mlp_mixer": lambda: Patches(100, nn.Sequential(*(Mixer() for _ in range(4)))),
    "fnet": lambda: Patches(100, nn.Sequential(Positioned(), *(Fourier() for _ in range(4))), norm=False),
    "gmlp": lambda: Patches(100, nn.Sequential(*(Gated() for _ in range(4)))),
}


class Contender:
    """A network with a batch to train on; its public methods are the tasks.

    Args:
        architecture: one of ``NETWORKS``.
        compiled: by ``torch.compile``.
        bfloat16: under autocast.
    """

    def __init__(self, architecture, compiled, bfloat16, batch_size=128):
        torch.manual_seed(0)
        self.network, self.bfloat16 = NETWORKS[architecture]().to(memory_format=torch.channels_last), bfloat16
        classes = 10 if architecture in ("convmixer", "cct") else 100
        self.images = torch.randn(batch_size, 3, 32, 32).to(memory_format=torch.channels_last)
        self.labels = torch.randint(classes, (batch_size,))
        self.optimizer = torch.optim.AdamW(self.network.parameters(), 1e-3, fused=True)
        self.forward = torch.compile(self._loss) if compiled else self._loss

    def _loss(self, images, labels):
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bfloat16):
            return functional.cross_entropy(self.network(images).float(), labels)

    def train(self) -> float:
        """Seconds of a training step on ``batch_size`` images, the mean of three."""
        start = time.perf_counter()
        for _ in range(3):
            self.optimizer.zero_grad(set_to_none=True)
            self.forward(self.images, self.labels).backward()
            self.optimizer.step()
        return (time.perf_counter() - start) / 3

    def parameters(self) -> int:
        """Trainable parameters, to be held against the tier's."""
        return sum(weight.numel() for weight in self.network.parameters())

    def memory(self) -> int:
        """The most memory that this process has had, in bytes."""
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    out, sys.stdout = sys.stdout, sys.stderr
    contender = Contender(**json.loads(sys.argv[1]))
    for line in sys.stdin:
        print(json.dumps(getattr(contender, line.strip())()), file=out, flush=True)
