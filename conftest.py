"""Test settings shared by all packages."""

import torch

# Tests run one process per core; more threads per process only fight each other on small tensors.
torch.set_num_threads(1)
