"""What holds for every test."""

import torch

# The tests' networks are so small that threads would spend their time waiting for each other.
torch.set_num_threads(1)
