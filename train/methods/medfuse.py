"""MedFuse (Hayat, Geras, Shamout, MLHC 2022): an LSTM over the vectors of the modalities that a sample has.

Missing modalities are not in the sequence, so nothing has to be imputed. The paper's two stages are one loop here: the
losses of stage 1 (a head on each modality alone) are added to that of stage 2, weighted by `unimodal`; the heads take
no part in a prediction. Cost: an encoder a modality, and M steps of one LSTM.
"""

import torch
from torch import Tensor, nn

from cache.bank import TokenBatch
from cache.errors import UserError
from extract.task import outputs, task_loss
from train.config import MedFuseSettings, ModelSettings
from train.methods.base import Method, ModelSpec, Output, labels_of
from train.methods.modality_encoders import ModalityEncoders
from train.missing import simulate


class MedFuse(Method):
    """Encoders, a map a modality, the fusion LSTM (hidden width 2 D, as 512 to 256 in the paper) and heads."""

    def __init__(self, spec: ModelSpec, model: ModelSettings, medfuse: MedFuseSettings) -> None:
        super().__init__(spec, model)
        self.settings = medfuse
        unknown = [m for m in medfuse.first if m not in spec.modalities]
        if unknown:
            raise UserError(f"compared.medfuse.first names {unknown}; the modalities are {list(spec.modalities)}.")
        self.order = [spec.modalities.index(m) for m in medfuse.first]
        self.order += [i for i in range(len(spec.modalities)) if i not in self.order]
        classes = outputs(spec.label)
        self.encode = ModalityEncoders(spec, model)
        self.maps = nn.ModuleList([nn.Linear(model.width, model.width) for _ in spec.modalities])
        self.lstm = nn.LSTM(model.width, 2 * model.width, batch_first=True)
        self.dropout = nn.Dropout(model.dropout)
        self.head = nn.Linear(2 * model.width, classes)
        self.unimodal_heads = nn.ModuleList([nn.Linear(model.width, classes) for _ in spec.modalities])

    def forward(self, batch: TokenBatch, generator: torch.Generator | None = None) -> Output:
        """Predict; in training mode also the losses of both stages."""
        labels = batch.labels if self.training else None
        observed = batch.observed if labels is None else simulate(batch.observed, self.settings.draw, generator)
        summaries, _ = self.encode(self.project(batch), observed)
        vectors = torch.stack([self.maps[i](summaries[:, i]) for i in range(len(self.maps))], dim=1)
        logits = self.fuse(vectors, observed, self._order(generator))
        if labels is None:
            return Output(logits)
        labels = self._thin_out(labels, batch.observed, generator)
        task = task_loss(logits, labels, self.spec.label)
        unimodal = self.unimodal_loss(vectors, labels, observed)
        loss = task + self.settings.unimodal * unimodal
        return Output(logits, {"loss": loss, "task": task, "unimodal": unimodal})

    def fuse(self, vectors: Tensor, observed: Tensor, order: list[int]) -> Tensor:
        """Logits [B, C] of the last hidden state over the observed vectors, gathered to the front.

        Args:
            vectors: [B, M, D].
            observed: bool [B, M].
            order: of the modalities in the sequence.
        """
        vectors, observed = vectors[:, order], observed[:, order]
        front = (~observed).to(torch.uint8).argsort(dim=1, stable=True)
        gathered = vectors.gather(1, front[:, :, None].expand_as(vectors))
        hidden, _ = self.lstm(gathered)  # causal: what comes after the last observed vector is never read
        last = hidden[torch.arange(len(hidden), device=hidden.device), observed.sum(1) - 1]
        logits: Tensor = self.head(self.dropout(last))
        return logits

    def unimodal_loss(self, vectors: Tensor, labels: Tensor, observed: Tensor) -> Tensor:
        """Stage 1: mean over modalities of the task loss of each alone, on the rows that have it."""
        losses = [
            task_loss(head(self.dropout(vectors[:, i])), labels_of(observed[:, i], labels), self.spec.label)
            for i, head in enumerate(self.unimodal_heads)
        ]
        return torch.stack(losses).mean()

    def _order(self, generator: torch.Generator | None) -> list[int]:
        if self.training and self.settings.shuffle:
            return torch.randperm(len(self.order), generator=generator).tolist()
        return self.order

    def _thin_out(self, labels: Tensor, natural: Tensor, generator: torch.Generator | None) -> Tensor:
        """Keep each naturally incomplete row with probability `incomplete_share` (the paper's tuned ratio)."""
        if self.settings.incomplete_share == 1:
            return labels
        draw = torch.rand(len(labels), generator=generator).to(labels.device) < self.settings.incomplete_share
        return labels_of(natural.all(-1) | draw, labels)
