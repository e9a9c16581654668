"""FedAvg that fails in round 2 while a file exists: a cell that breaks, and can be repaired."""

from pathlib import Path

from fedddpm_app.algorithms.fedavg import FederatedAveraging


class Fragile(FederatedAveraging):
    def after_aggregation(self, server_round, weights):
        if server_round == 2 and Path(str(self.config.run.options["flag"])).exists():
            raise RuntimeError("the flag is set")
        return super().after_aggregation(server_round, weights)
