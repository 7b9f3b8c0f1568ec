"""Networks of the zoo that no library has: plain PyTorch, one per way of computing that classifiers use."""

import torch
import torch.nn.functional as F
from torch import nn

CLASSES = 10


class TextCnn(nn.Module):
    """Convolutions of several widths over an embedded text, each pooled by its maximum."""

    def __init__(self, vocabulary=100, width=16):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.convolutions = nn.ModuleList(nn.Conv1d(width, 8, k) for k in (2, 3, 4))
        self.head = nn.Linear(24, CLASSES)

    def forward(self, ids):
        x = self.embedding(ids).transpose(1, 2)
        return self.head(torch.cat([F.relu(c(x)).amax(2) for c in self.convolutions], 1))


class Cnn1d(nn.Module):
    """A one-dimensional convolutional network with max pooling, for audio and sensors."""

    def __init__(self, channels=4):
        super().__init__()
        layers = []
        for a, b in ((channels, 8), (8, 16), (16, 32)):
            layers += [nn.Conv1d(a, b, 5, padding=2), nn.BatchNorm1d(b), nn.ELU(), nn.MaxPool1d(3, 2, 1)]
        self.body = nn.Sequential(*layers, nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(32, CLASSES))

    def forward(self, x):
        return self.body(x)


class Cnn3d(nn.Module):
    """A three-dimensional convolutional network, for video and volumes."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv3d(2, 8, 3, padding=1), nn.BatchNorm3d(8), nn.LeakyReLU(0.1), nn.MaxPool3d(2),
            nn.Conv3d(8, 16, (1, 3, 3), stride=(1, 2, 2), groups=2), nn.InstanceNorm3d(16, affine=True), nn.Softplus(),
            nn.AvgPool3d(2, padding=1), nn.Flatten(), nn.LazyLinear(CLASSES),
        )
        self.body(torch.zeros(2, 2, 8, 12, 12))

    def forward(self, x):
        return self.body(x)


class Recurrent(nn.Module):
    """A recurrent layer over a sequence; the last step is classified."""

    def __init__(self, kind, bidirectional=False, layers=1, width=12, **options):
        super().__init__()
        self.layer = kind(6, width, layers, batch_first=True, bidirectional=bidirectional, **options)
        self.head = nn.Linear(width * (1 + bidirectional), CLASSES)

    def forward(self, x):
        return self.head(self.layer(x)[0][:, -1])


class Cell(nn.Module):
    """A GRU cell unrolled by hand."""

    def __init__(self):
        super().__init__()
        self.cell = nn.GRUCell(6, 12)
        self.head = nn.Linear(12, CLASSES)

    def forward(self, x):
        state = x.new_zeros(x.shape[0], 12)
        for step in x.unbind(1):
            state = self.cell(step, state)
        return self.head(state)


class Tcn(nn.Module):
    """A temporal convolutional network: causal dilated convolutions with weight normalization."""

    def __init__(self):
        super().__init__()
        norm = nn.utils.parametrizations.weight_norm
        self.layers = nn.ModuleList(norm(nn.Conv1d(a, 12, 3, dilation=d)) for a, d in ((4, 1), (12, 2), (12, 4)))
        self.head = nn.Linear(12, CLASSES)

    def forward(self, x):
        for layer in self.layers:
            y = F.relu(layer(F.pad(x, (2 * layer.dilation[0], 0))))
            x = y + x if y.shape == x.shape else y
        return self.head(x[..., -1])


class PointNet(nn.Module):
    """Shared layers over points with a learned alignment, pooled by their maximum."""

    def __init__(self):
        super().__init__()
        self.align = nn.Sequential(nn.Conv1d(3, 16, 1), nn.BatchNorm1d(16), nn.ReLU(), nn.Conv1d(16, 32, 1), nn.ReLU())
        self.matrix = nn.Linear(32, 9)
        self.points = nn.Sequential(nn.Conv1d(3, 16, 1), nn.BatchNorm1d(16), nn.ReLU(), nn.Conv1d(16, 48, 1))
        self.head = nn.Sequential(nn.Linear(48, 24), nn.LayerNorm(24), nn.ReLU(), nn.Linear(24, CLASSES))

    def forward(self, x):
        matrix = self.matrix(self.align(x).max(2).values).view(-1, 3, 3) + torch.eye(3)
        return self.head(self.points(torch.bmm(matrix, x)).max(2).values)


class MlpMixer(nn.Module):
    """Layers over patches and layers over channels in turn."""

    def __init__(self, width=24, patches=16):
        super().__init__()
        self.stem = nn.Conv2d(3, width, 8, 8)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(4))
        self.tokens = nn.ModuleList(nn.Sequential(nn.Linear(patches, 32), nn.GELU(), nn.Linear(32, patches)) for _ in range(2))
        self.channels = nn.ModuleList(nn.Sequential(nn.Linear(width, 48), nn.GELU(), nn.Linear(48, width)) for _ in range(2))
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x):
        x = self.stem(x).flatten(2).transpose(1, 2)
        for i in range(2):
            x = x + self.tokens[i](self.norms[2 * i](x).transpose(1, 2)).transpose(1, 2)
            x = x + self.channels[i](self.norms[2 * i + 1](x))
        return self.head(x.mean(1))


class Capsules(nn.Module):
    """Capsules with two rounds of routing by agreement; a class's logit is the length of its capsule."""

    def __init__(self):
        super().__init__()
        self.convolution = nn.Conv2d(1, 16, 5, 2)
        self.primary = nn.Conv2d(16, 32, 3, 2)
        self.weight = nn.Parameter(0.3 * torch.randn(CLASSES, 100, 6, 8))

    @staticmethod
    def squash(x):
        square = (x * x).sum(-1, keepdim=True)
        return square / (1 + square) * x / torch.sqrt(square + 1e-6)

    def forward(self, x):
        x = self.primary(F.relu(self.convolution(x)))
        x = self.squash(x.view(x.shape[0], 4, 8, -1).permute(0, 1, 3, 2).reshape(x.shape[0], -1, 8))
        votes = torch.einsum("cpij,npj->ncpi", self.weight, x)
        routing = torch.zeros_like(votes[..., 0])
        for _ in range(2):
            share = F.softmax(routing, 1).unsqueeze(-1)
            out = self.squash((share * votes).sum(2))
            routing = routing + (votes * out.unsqueeze(2)).sum(-1)
        return 5 * out.norm(dim=-1)


class Scatter(nn.Module):
    """A graph network: messages along the edges of a ring with chords, added up where they arrive."""

    def __init__(self, nodes=12, width=16):
        super().__init__()
        start = torch.arange(nodes)
        self.register_buffer("source", torch.cat([start, start]))
        self.register_buffer("target", torch.cat([(start + 1) % nodes, (start + 5) % nodes]))
        self.stem = nn.Linear(5, width)
        self.messages = nn.ModuleList(nn.Linear(2 * width, width) for _ in range(2))
        self.updates = nn.ModuleList(nn.Linear(2 * width, width) for _ in range(2))
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x):
        x = F.silu(self.stem(x))
        for message, update in zip(self.messages, self.updates):
            pair = torch.cat([x[:, self.source], x[:, self.target]], 2)
            sent = F.silu(message(pair))
            index = self.target.view(1, -1, 1).expand_as(sent)
            arrived = torch.zeros_like(x).scatter_add(1, index, sent)
            x = x + F.silu(update(torch.cat([x, arrived], 2)))
        return self.head(x.mean(1))


class GraphConvolution(nn.Module):
    """Graph convolution by a normalized adjacency matrix that comes with the features."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = nn.Linear(5, 16), nn.Linear(16, 16), nn.Linear(16, CLASSES)

    def forward(self, x):
        score = torch.matmul(x, x.transpose(1, 2))
        near = (score > 0).float() + torch.eye(x.shape[1])
        near = near / near.sum(2, keepdim=True).sqrt() / near.sum(1, keepdim=True).sqrt()
        x = F.relu(torch.bmm(near, self.first(x)))
        return self.head(torch.bmm(near, self.second(x)).relu().amax(1))


class UNet(nn.Module):
    """Down and up again with a shortcut, up by transposed convolution; the mean map is classified."""

    def __init__(self):
        super().__init__()
        self.down1 = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.Mish())
        self.down2 = nn.Sequential(nn.Conv2d(8, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.PReLU(16))
        self.up = nn.ConvTranspose2d(16, 8, 3, 2, 1, output_padding=1)
        self.out = nn.Conv2d(16, CLASSES, 3, padding=1, padding_mode="reflect")

    def forward(self, x):
        x = self.down1(x)
        return self.out(torch.cat([x, self.up(self.down2(x))], 1)).mean((2, 3))


class Upsample(nn.Module):
    """Features of two scales, the coarse one resized to the fine one."""

    def __init__(self, mode):
        super().__init__()
        self.options = {"mode": mode} | ({} if mode == "nearest" else {"align_corners": False})
        self.fine, self.coarse = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, 2, 1)
        self.head = nn.Conv2d(16, CLASSES, 1)

    def forward(self, x):
        fine = F.relu(self.fine(x))
        coarse = F.interpolate(F.relu(self.coarse(fine)), scale_factor=2.0, **self.options)
        return self.head(torch.cat([fine, coarse], 1)).amax((2, 3))


class SpatialTransformer(nn.Module):
    """An image sampled on a grid that the network chooses, then classified."""

    def __init__(self):
        super().__init__()
        self.look = nn.Sequential(nn.Conv2d(1, 8, 5, 2), nn.ReLU(), nn.Flatten(), nn.Linear(800, 6))
        self.read = nn.Sequential(nn.Conv2d(1, 8, 5, 2), nn.ReLU(), nn.Flatten(), nn.Linear(800, CLASSES))

    def forward(self, x):
        theta = 0.1 * self.look(x).view(-1, 2, 3) + torch.tensor([[1.0, 0, 0], [0, 1, 0]])
        return self.read(F.grid_sample(x, F.affine_grid(theta, x.shape, align_corners=False), align_corners=False))


class Highway(nn.Module):
    """Fully connected highway layers with gates, and a maxout layer before the classes."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Linear(20, 16)
        self.layers = nn.ModuleList(nn.Linear(16, 32) for _ in range(3))
        self.head = nn.Linear(16, 3 * CLASSES)

    def forward(self, x):
        x = torch.tanh(self.stem(x))
        for layer in self.layers:
            value, gate = layer(x).chunk(2, 1)
            x = torch.sigmoid(gate) * F.selu(value) + (1 - torch.sigmoid(gate)) * x
        return self.head(x).view(-1, CLASSES, 3).max(2).values


class Experts(nn.Module):
    """A mixture of experts: the two best of four by a learned gate, weighted."""

    def __init__(self):
        super().__init__()
        self.gate = nn.Linear(12, 4)
        self.experts = nn.Parameter(0.3 * torch.randn(4, 12, 16))
        self.head = nn.Linear(16, CLASSES)

    def forward(self, x):
        score, index = self.gate(x).topk(2, 1)
        chosen = self.experts[index]
        y = torch.einsum("ni,nkio->nko", x, chosen)
        return self.head(F.gelu((score.softmax(1).unsqueeze(2) * y).sum(1), approximate="tanh"))


class Memory(nn.Module):
    """Attention of nn.MultiheadAttention and a transformer encoder layer, with a causal mask."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Linear(6, 16)
        layer = nn.TransformerEncoderLayer(16, 4, 32, dropout=0.0, activation="gelu", batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.query = nn.Parameter(torch.randn(1, 2, 16))
        self.attention = nn.MultiheadAttention(16, 4, batch_first=True)
        self.head = nn.Linear(32, CLASSES)

    def forward(self, x):
        mask = torch.triu(torch.full((x.shape[1], x.shape[1]), float("-inf")), 1)
        x = self.encoder(self.stem(x), mask=mask)
        return self.head(self.attention(self.query.expand(x.shape[0], -1, -1), x, x)[0].flatten(1))


class Cosine(nn.Module):
    """A metric head: normalized features against normalized class centres, with a learned temperature."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(20, 32), nn.BatchNorm1d(32), nn.Hardswish(), nn.Linear(32, 16))
        self.centres = nn.Parameter(torch.randn(CLASSES, 16))
        self.temperature = nn.Parameter(torch.tensor(1.5))

    def forward(self, x):
        return F.linear(F.normalize(self.body(x)), F.normalize(self.centres)) * self.temperature.exp()


class Prototypes(nn.Module):
    """Distances to prototypes by cdist-like arithmetic, with cumulative and sorted features."""

    def __init__(self):
        super().__init__()
        self.body = nn.Linear(12, 16)
        self.prototypes = nn.Parameter(torch.randn(CLASSES, 16))

    def forward(self, x):
        x = torch.cumsum(self.body(x.abs().sqrt()), 1)
        x = torch.sort(x, dim=1).values
        return -((x[:, None] - self.prototypes).square().sum(2) + 1e-3).sqrt()


class PixelShuffle(nn.Module):
    """Space to depth and depth to space between convolutions, and local response normalization."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(12, 16, 3, padding=1), nn.Conv2d(4, 8, 3, padding=1)
        self.norm = nn.LocalResponseNorm(3)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x):
        x = self.norm(F.relu(self.first(F.pixel_unshuffle(x, 2))))
        return self.head(F.relu(self.second(F.pixel_shuffle(x, 2))).mean((2, 3)))


class Squeeze3d(nn.Module):
    """(2+1)-dimensional convolutions: space, then time, with a residual."""

    def __init__(self):
        super().__init__()
        self.space = nn.Conv3d(3, 8, (1, 3, 3), (1, 2, 2), (0, 1, 1), bias=False)
        self.time = nn.Conv3d(8, 8, (3, 1, 1), 1, (1, 0, 0), groups=8)
        self.norms = nn.ModuleList(nn.BatchNorm3d(8) for _ in range(2))
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x):
        x = F.relu(self.norms[0](self.space(x)))
        x = x + F.relu(self.norms[1](self.time(x)))
        return self.head(F.adaptive_avg_pool3d(x, 1).flatten(1))


class Tied(nn.Module):
    """One layer used three times, as in recurrent-depth transformers and autoencoders with tied weights."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(16, 16)
        self.head = nn.Linear(16, CLASSES)

    def forward(self, x):
        for _ in range(3):
            x = torch.tanh(self.layer(x)) + x
        return self.head(F.linear(x, self.layer.weight.t()))


class Ensemble(nn.Module):
    """Two networks whose log-probabilities are averaged."""

    def __init__(self):
        super().__init__()
        self.a = nn.Sequential(nn.Linear(20, 16), nn.CELU(), nn.Linear(16, CLASSES))
        self.b = nn.Sequential(nn.Linear(20, 24), nn.Softsign(), nn.Linear(24, CLASSES))

    def forward(self, x):
        both = torch.stack([self.a(x).log_softmax(1), self.b(x).log_softmax(1)])
        return torch.logsumexp(both, 0)
