"""The parts that connect diffusion, data and federation in one run: task, monitor and evaluation."""
