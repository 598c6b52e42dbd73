//! The Rust forms.

use sterna_hal::kernel::Group;

use crate::chunks::same_len;
use crate::reduce::{LANES, Lanes, put};
use crate::spmv_csr::{Rows, at};

pub(super) fn contributions(
    _: Group,
    (): (),
    rank: &[f32],
    out_degree: &[u32],
    contribution: &mut [f32],
    dangling: &mut [f32],
) {
    same_len("pagerank_contributions", rank.len(), out_degree.len());
    same_len("pagerank_contributions", rank.len(), contribution.len());
    let share = |r: f32, degree: u32| if degree == 0 { 0.0 } else { r / degree as f32 };
    for ((c, r), degree) in contribution.iter_mut().zip(rank).zip(out_degree) {
        *c = share(*r, *degree);
    }
    // A second pass over a chunk that is still in the cache; both loops stay simple enough to become vector code.
    let held = |r: f32, degree: u32| if degree == 0 { r } else { 0.0 };
    let ((ranks, ranks_rest), (degrees, degrees_rest)) = (rank.as_chunks::<LANES>(), out_degree.as_chunks::<LANES>());
    let mut lanes = Lanes::default();
    for (r, d) in ranks.iter().zip(degrees) {
        lanes.add(std::array::from_fn(|i| held(r[i], d[i])));
    }
    lanes.add_rest(ranks_rest.iter().zip(degrees_rest).map(|(r, d)| held(*r, *d)));
    put("pagerank_contributions", rank.len(), dangling, lanes.total());
}

pub(super) fn step(
    group: Group,
    damping: f32,
    row_ptr: &[u32],
    source: &[u32],
    contribution: &[f32],
    dangling: &[f32],
    next: &mut [f32],
) {
    let rows = Rows::of("pagerank_step", group, row_ptr, next.len());
    // The rows have made sure that row_ptr is one longer than `next` as a whole.
    same_len("pagerank_step", contribution.len() + 1, row_ptr.len());
    let (d, n) = (f64::from(damping), contribution.len() as f64);
    // Every group adds these up anew: one number a group of the first half, next to nothing beside the edges.
    let held: f64 = dangling.iter().copied().map(f64::from).sum();
    let everywhere = (1.0 - d) / n + d * held / n;
    for (next, r) in next.iter_mut().zip(rows.ranges(source.len())) {
        let pulled: f64 = source[r].iter().map(|u| at("pagerank_step", contribution, *u)).sum();
        *next = (everywhere + d * pulled) as f32;
    }
}
