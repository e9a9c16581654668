"""What ties diffusion, data and federation to one run: the task, the monitor, the evaluation."""
