"""Distillation only: a control that shows whether FedDDPM-KD is more than one distillation of the clients' models.

    Pretraining, auxiliary set   as FedDDPM-KD
    Round r                      w <- K_s + K_r steps on L_KD from w, on the server; clients do not train

Symbols: as in ``fedddpm_kd``; K_r -> the compute of the round's clients, as steps of the distillation, each of which
costs 4/3 of a training step. A run therefore costs as much as a FedDDPM-KD run with the same config. With
``num-rounds = 1`` it is one-shot distillation: the clients send their models once, and the learning-rate schedule spans
the whole distillation.
Deviations: none; it is our control.
"""

from fedddpm_app.algorithms.aux_only import AuxiliaryOnly
from fedddpm_app.algorithms.fedddpm_kd import FedDDPMKD


class DistillationOnly(AuxiliaryOnly, FedDDPMKD):
    """FedDDPM-KD without the clients' training in the rounds."""
