"""Secure aggregation of one round: the server gets the sum of the clients' updates, and no single one.

Practical Secure Aggregation for Privacy-Preserving Machine Learning. Keith Bonawitz et al. CCS 2017.
https://eprint.iacr.org/2017/281, figure 4, without its signatures: a server that is honest but curious.

    1  keys      client i: two key pairs; public halves to the server
    2  shares    client i: a seed b_i; Shamir shares of b_i and of its private mask key, encrypted for each peer
    3  upload    client i: y_i = x_i + PRG(b_i) + sum_{j > i} PRG(s_ij) - sum_{j < i} PRG(s_ij)
    4  reveal    of each client: shares of b_j for j that uploaded, of the mask key for j that did not; never both
       sum       sum_i x_i = sum_i y_i - the masks that do not cancel

Symbols: x_i -> the whole numbers of ``Encoding.encode``, s_ij -> ``shared_seed``, PRG -> ``masks.add_mask``.
Deviations: all clients share with all (SecAgg+, Bell et al. 2020, takes a few neighbours of each). PRG is AES-256 in
counter mode with the full 256 bits: Flower's own generator has a seed of 32 bits, which can be tried out. A client also
sends the SHA-256 of b_i and of each share, so that a wrong share is noticed, and who made or revealed it. s_ij depends
on what the server told both clients (``Encoding.told``), which keeps a server from having all but one send zeros
(Pasquini et al. 2022, https://arxiv.org/abs/2111.07380). The room has no messages: ``client`` and ``server`` are the
two ends as state machines, and Flower carries what they return.
"""
