//! What the numbered programs of this folder are made of. Each program is one module here and a few lines in `src/bin`, so that
//! the tour can run a short form of every one.
//!
//! | program | module | shows |
//! |---|---|---|
//! | `01_hello` | [`hello`] | the smallest program, and where its pages are meanwhile |
//! | `02_own_kernel` | [`fractal`] | kernels of one's own |
//! | `03_pagerank` | [`graph`], [`incoming`], [`pagerank`] | a sparse graph, built in shared memory by the host |
//! | `04_hubble` | [`sky`], [`stars`] | stock and own kernels between two pictures |
//! | `05_heat` | [`heat`] | four times more data than the device has memory |
//! | `tour` | [`tour`] | all of them, in seconds |

#![deny(unsafe_code)]

pub mod devices;
mod forms;
pub mod fractal;
pub mod graph;
pub mod heat;
pub mod hello;
pub mod incoming;
mod input;
pub mod moved;
pub mod pagerank;
pub mod picture;
pub mod places;
pub mod progress;
pub mod report;
pub mod sky;
pub mod stars;
pub mod tour;
