"""FedAvg: Communication-Efficient Learning of Deep Networks from Decentralized Data.

H. Brendan McMahan, Eider Moore, Daniel Ramage, Seth Hampson, Blaise Aguera y Arcas. AISTATS 2017.
https://arxiv.org/abs/1602.05629, Algorithm 1.

    Round r    S_r <- sample clients;  w_i <- K local steps on L(.; D_i) from w;  w <- sum_{i in S_r} n_i w_i / sum n_i

Symbols: w -> weights, n_i -> num_examples, S_r -> partitions of the round, K -> local_steps.
Deviations: none; the local objective is the denoising loss. Another ``aggregator`` replaces the last step.
"""

from fedddpm_app.federation.strategy import FederatedStrategy


class FederatedAveraging(FederatedStrategy):
    """FedAvg: the base strategy, unchanged on the server and on the clients."""
