"""Accuracy against ground truth: camera poses of a reconstruction, relative poses and homographies of image pairs."""
