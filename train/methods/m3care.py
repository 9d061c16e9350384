"""M3Care (Zhang et al., KDD 2022): what a sample misses is aggregated from similar samples.

A graph joins samples by the modalities that both have; two graph convolutions a modality gather the vectors of the
neighbours, and a Transformer fuses the result with the observed tokens. In training the neighbours are the batch. In
evaluation they are stored rows of the last training batches, so that a prediction does not depend on its batch; the
official code takes the batch there, too (`neighbours: batch`).

Cost: an encoder a modality, and 2 M kernels of n^2 distances, n being the batch, plus `memory` in evaluation.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cache.bank import TokenBatch
from extract.task import outputs, task_loss
from train.config import M3CareSettings, ModelSettings
from train.methods.base import Method, ModelSpec, Output, Tokens
from train.methods.modality_encoders import ModalityEncoders
from train.missing import simulate
from train.transformer import TokenTransformer

INITIAL_MIX = {"sum": -0.3, "product": 2.0}  # of OV and of ODIR, before the sigmoid


@dataclass(frozen=True)
class Nodes:
    """Samples of the graph: the batch's rows, then the stored ones if they take part.

    vectors: h [n, M, D]; has: bool [n, M]; linked: bool [n, n], which column may inform which row; reference: bool
    [n], rows that set the bandwidth of the kernels.
    """

    vectors: Tensor
    has: Tensor
    linked: Tensor
    reference: Tensor


class SimilarityGraph(nn.Module):
    """Edges from the modalities that two samples share (steps 2 to 4)."""

    def __init__(self, count: int, width: int, m3care: M3CareSettings) -> None:
        super().__init__()
        self.settings = m3care
        self.maps = nn.ModuleList([_three_layers(width) for _ in range(count)])  # g_m
        self.norm_mapped = nn.ModuleList([nn.BatchNorm1d(width) for _ in range(count)])
        self.norm_plain = nn.ModuleList([nn.BatchNorm1d(width) for _ in range(count)])
        self.mix = nn.Parameter(torch.full((count,), INITIAL_MIX[m3care.similarity]))  # epsilon_m
        self.cut = nn.Parameter(torch.tensor(math.log(m3care.threshold / (1 - m3care.threshold))))  # t

    def forward(self, nodes: Nodes) -> Tensor:
        """Return S [n, n], zero where no modality is shared and below the threshold."""
        both = nodes.has[:, None] & nodes.has[None]  # o_m o_m^T for all m, [n, n, M]
        total = torch.zeros_like(both[..., 0], dtype=torch.float32)
        for m in range(len(self.maps)):
            total = total + self.similarity(nodes, m) * both[..., m]
        mean = total / both.sum(-1).clamp(min=1) * nodes.linked
        cut = self.cut.sigmoid()
        # S where S > lambda, with a gradient to lambda
        return F.relu(mean - cut) + (mean > cut) * cut.detach()

    def similarity(self, nodes: Nodes, m: int) -> Tensor:
        """S_m from the kernels on mapped and plain vectors, K_m and Q_m; [n, n], meaningless at rows without m."""
        has = nodes.has[:, m]
        own = nodes.vectors[has, m]
        reference = nodes.reference & has
        empty = torch.zeros_like(nodes.vectors[:, m], dtype=torch.float32)
        mapped, plain = (
            kernel(empty.masked_scatter(has[:, None], values.float()), reference)
            for values in (
                _normalised(self.norm_mapped[m], self.maps[m](own)),
                _normalised(self.norm_plain[m], own),
            )
        )
        e = self.mix[m].sigmoid()
        return (1 - e) * mapped + e * plain if self.settings.similarity == "sum" else ((1 - e) * mapped + e) * plain

    def norm_penalty(self, nodes: Nodes) -> Tensor:
        """Sum over modalities of | |g_m(H_m)|_F - |H_m|_F |."""
        terms = [
            (self.maps[m](own).norm() - own.norm()).abs()
            for m in range(len(self.maps))
            for own in [nodes.vectors[nodes.has[:, m], m]]
            if len(own)
        ]
        return torch.stack(terms).sum()


class M3Care(Method):
    """Encoders, the graph, its convolutions and gates, the memory, and the fusion of all tokens."""

    def __init__(self, spec: ModelSpec, model: ModelSettings, m3care: M3CareSettings) -> None:
        super().__init__(spec, model)
        self.settings = m3care
        width, count = model.width, len(spec.modalities)
        self.encode = ModalityEncoders(spec, model)
        self.graph = SimilarityGraph(count, width, m3care)
        self.first = nn.ModuleList([nn.Linear(width, width) for _ in range(count)])  # W_1, b_1
        self.second = nn.ModuleList([nn.Linear(width, width) for _ in range(count)])  # W_2, b_2
        self.gate_graph = nn.ModuleList([nn.Linear(width, 1, bias=False) for _ in range(count)])  # w_1
        self.gate_own = nn.ModuleList([nn.Linear(width, 1, bias=False) for _ in range(count)])  # w_2
        self.missing_token = nn.Parameter(torch.randn(count, width) * 0.02)
        self.modality_embedding = nn.Parameter(torch.randn(count, width) * 0.02)
        self.transformer = TokenTransformer(model, model.fusion_layers)
        self.head = nn.Sequential(
            nn.Linear(count * width, 2 * width),
            nn.ReLU(),
            nn.Dropout(model.dropout),
            nn.Linear(2 * width, outputs(spec.label)),
        )
        self.memory: Tensor
        self.memory_has: Tensor
        self.memory_next: Tensor
        self.register_buffer("memory", torch.zeros(m3care.memory, count, width))
        self.register_buffer("memory_has", torch.zeros(m3care.memory, count, dtype=torch.bool))
        self.register_buffer("memory_next", torch.zeros((), dtype=torch.int64))

    def forward(self, batch: TokenBatch, generator: torch.Generator | None = None) -> Output:
        """Predict; in training mode also the losses, and the batch's vectors are stored."""
        labels = batch.labels if self.training else None
        observed = batch.observed if labels is None else simulate(batch.observed, self.settings.draw, generator)
        tokens = self.project(batch)
        vectors, hidden = self.encode(tokens, observed)
        nodes = self.nodes(vectors, observed)
        completed = self.complete(nodes, self.graph(nodes))[: len(observed)]
        logits = self.fuse(completed, hidden, tokens, observed)
        if labels is None:
            return Output(logits)
        self.remember(vectors, observed)
        task, norms = task_loss(logits, labels, self.spec.label), self.graph.norm_penalty(nodes)
        return Output(logits, {"loss": task + self.settings.norm_penalty * norms, "task": task, "norms": norms})

    def nodes(self, vectors: Tensor, observed: Tensor) -> Nodes:
        """The batch as a graph, or each of its rows with the memory alone."""
        rows = len(vectors)
        if self.training or self.settings.neighbours == "batch":
            everyone = observed.new_ones(rows)
            return Nodes(vectors, observed, everyone.expand(rows, rows), everyone)
        stored = len(self.memory)
        linked = observed.new_ones(rows + stored, rows + stored)
        linked[:, :rows] = False
        linked[:rows, :rows].fill_diagonal_(True)
        reference = torch.arange(rows + stored, device=observed.device) >= rows
        has = torch.cat([observed, self.memory_has])
        return Nodes(torch.cat([vectors, self.memory.to(vectors)]), has, linked, reference)

    def complete(self, nodes: Nodes, graph: Tensor) -> Tensor:
        """h' of steps 5 and 6: own and neighbours' vectors mixed, or the neighbours' alone; [n, M, D]."""
        columns = []
        for m in range(len(self.first)):
            edges = graph * nodes.has[:, m]  # columns only: who lacks m is informed, but informs nobody
            weight = edges.sum(1, keepdim=True)
            if self.settings.normalise_rows:
                edges = edges / weight.clamp(min=1e-6)
            own = nodes.vectors[:, m]
            gathered = F.relu(self.second[m](edges @ F.relu(self.first[m](edges @ own))))
            a, c = self.gate_graph[m](gathered).sigmoid(), self.gate_own[m](own).sigmoid()
            share = a / (a + c)
            mixed = share * gathered + (1 - share) * own
            absent = torch.where(weight > 0, gathered, self.missing_token[m])  # nobody to learn from
            columns.append(torch.where(nodes.has[:, m, None], mixed, absent))
        return torch.stack(columns, dim=1)

    def fuse(self, completed: Tensor, hidden: dict[str, Tensor], tokens: Tokens, observed: Tensor) -> Tensor:
        """Step 7: the vectors [B, M, D] as tokens beside the observed tokens; logits [B, C] from their places."""
        embedding, names = self.modality_embedding, list(enumerate(self.spec.modalities))
        sequence = torch.cat([completed + embedding, *(hidden[m] + embedding[i] for i, m in names)], dim=1)
        valid = torch.cat(
            [torch.ones_like(observed), *(tokens.valid[m] & observed[:, i, None] for i, m in names)], dim=1
        )
        fused = self.transformer(sequence, valid)[:, : len(names)]
        logits: Tensor = self.head(fused.flatten(1))
        return logits

    @torch.no_grad()
    def remember(self, vectors: Tensor, observed: Tensor) -> None:
        """Store the rows of a training batch in the place of the oldest."""
        vectors, observed = vectors[-len(self.memory) :], observed[-len(self.memory) :]
        place = (self.memory_next + torch.arange(len(vectors), device=vectors.device)) % len(self.memory)
        self.memory[place] = vectors.to(self.memory)
        self.memory_has[place] = observed
        self.memory_next.copy_((self.memory_next + len(vectors)) % len(self.memory))


def kernel(vectors: Tensor, reference: Tensor) -> Tensor:
    """Gaussian kernel of three bandwidths; [n, n].

    Args:
        vectors: U [n, D].
        reference: bool [n]; b is the mean squared distance between two of these rows (1 when there is none).
    """
    with torch.autocast(vectors.device.type, enabled=False):  # differences of squares need float32
        u = vectors.float()
        squares = u.square().sum(-1)
        distance = (squares[:, None] + squares[None] - 2 * u @ u.T).clamp(min=0)
        rows = int(reference.sum())
        chosen = distance.detach()[reference][:, reference]
        b = float(chosen.sum()) / (rows**2 - rows) if rows > 1 else 0.0
        b = b if b >= 1e-3 else 1.0  # as in the official code for ODIR
        return torch.stack([(-distance / (q * b)).exp() for q in (0.5, 1.0, 2.0)]).mean(0)


def _three_layers(width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width)
    )


def _normalised(norm: nn.Module, values: Tensor) -> Tensor:
    """BatchNorm; a single row, which has no variance, is normalised by the running statistics."""
    if len(values) > 1 or not norm.training:
        return torch.as_tensor(norm(values))
    return F.batch_norm(values, norm.running_mean, norm.running_var, norm.weight, norm.bias)  # type: ignore[arg-type]
