//! Stock kernels.
