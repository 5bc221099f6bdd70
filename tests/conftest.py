"""Tests never reach the network, and leave the machine's cores to each other."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"
