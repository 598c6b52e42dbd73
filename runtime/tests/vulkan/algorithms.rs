//! Stock kernels that move, count, search and multiply: their SPIR-V forms against the plain sequential versions.

use sterna::kernels::{
    BODIES, MATMUL_ROWS, REDUCE_CHUNK, SPARSE_ROWS, UNREACHED, bfs_step, bfs_step_len, copy, fill_chunk, gather, histogram,
    matmul, nbody_step, reduce_sum_len, reference, scan, scan_add,
};

use crate::common::MIB;
use crate::kernels::about;
use crate::random::Random;
use crate::{lacks_bytes, runtimes, turn};

#[test]
fn copies_and_gathers() {
    let _turn = turn();
    for (kind, rt) in runtimes(32 * MIB) {
        let mut random = Random(11);
        for n in about(fill_chunk::<[f32; 3]>()) {
            let x: Vec<[f32; 3]> = random.noise(3 * n).as_chunks().0.to_vec();
            let index: Vec<u32> = (0..n).map(|_| random.below(n) as u32).collect();
            let (dx, di) = (rt.shared_from(&x).unwrap(), rt.shared_from(&index).unwrap());
            let mut y = rt.shared::<[f32; 3]>(n).unwrap();
            rt.launch(&copy(), (&dx, &mut y)).unwrap();
            assert!(y[..] == x[..], "{kind}: copy of {n}");
            rt.launch(&gather(), (&di, &dx, &mut y)).unwrap();
            assert!(y[..] == reference::gather(&index, &x)[..], "{kind}: gather of {n}");
        }
        let bytes: Vec<u8> = (0..70_001_u32).map(|i| (i * 7) as u8).collect();
        let (dx, mut y) = (rt.shared_from(&bytes).unwrap(), rt.shared::<u8>(bytes.len()).unwrap());
        match rt.launch(&copy(), (&dx, &mut y)) {
            Err(e) if lacks_bytes(&e) => println!("SKIP {kind}: bytes: {e}"),
            copied => {
                copied.unwrap();
                assert!(y[..] == bytes[..], "{kind}: bytes");
            }
        }
        let index = rt.shared_from(&[0_u32, 70_001]).unwrap();
        let (x, mut y) = (rt.shared::<u32>(70_001).unwrap(), rt.shared::<u32>(2).unwrap());
        let e = rt.launch(&gather(), (&index, &x, &mut y)).unwrap().wait().unwrap_err().to_string();
        assert!(e.contains("element 70001 of 70001"), "{kind}: {e}");
    }
}

#[test]
fn scans() {
    let _turn = turn();
    for (kind, rt) in runtimes(32 * MIB) {
        let mut random = Random(12);
        for n in about(REDUCE_CHUNK) {
            let x: Vec<u32> = (0..n).map(|_| random.next() as u32).collect();
            let dx = rt.shared_from(&x).unwrap();
            let (mut y, mut sums) = (rt.shared::<u32>(n).unwrap(), rt.shared::<u32>(reduce_sum_len(n)).unwrap());
            rt.launch(&scan(), (&dx, &mut y, &mut sums)).unwrap();
            rt.launch(&scan_add(), (&sums, &mut y)).unwrap();
            let want = reference::scan(&x);
            let off = y.iter().zip(&want).position(|(g, w)| g != w);
            assert_eq!(off, None, "{kind}: scan of {n}");
        }
    }
}

#[test]
fn histograms() {
    let _turn = turn();
    for (kind, rt) in runtimes(32 * MIB) {
        let mut random = Random(13);
        for (n, bins) in [(1, 1), (100_000, 7), (200_001, 1024), (100_000, 1025), (65_536, 40_000)] {
            let x: Vec<u32> = (0..n).map(|_| random.below(bins) as u32).collect();
            let dx = rt.shared_from(&x).unwrap();
            let mut counts = rt.shared_with(bins, |i| i as u32).unwrap();
            rt.launch(&histogram(), (&dx, &mut counts)).unwrap();
            let want = reference::histogram(bins, &x);
            assert!(counts.iter().zip(&want).enumerate().all(|(i, (c, w))| *c == w + i as u32), "{kind}: {bins} bins");
        }
        let (x, mut counts) = (rt.shared_from(&[0_u32, 5]).unwrap(), rt.shared::<u32>(5).unwrap());
        let e = rt.launch(&histogram(), (&x, &mut counts)).unwrap().wait().unwrap_err().to_string();
        assert!(e.contains("value 5, and there are 5 bins"), "{kind}: {e}");
    }
}

#[test]
fn breadth_first_searches() {
    let _turn = turn();
    for (kind, rt) in runtimes(32 * MIB) {
        let mut random = Random(14);
        for n in [2, SPARSE_ROWS, 2 * SPARSE_ROWS + 17] {
            let (row_ptr, mut source) = random.graph(n, n);
            source.push(0); // never empty
            let (d_row, d_source) = (rt.shared_from(&row_ptr).unwrap(), rt.shared_from(&source).unwrap());
            let mut level = rt.shared_with(n, |i| if i == 1 { 0 } else { UNREACHED }).unwrap();
            let (mut next, mut found) = (rt.shared::<u32>(n).unwrap(), rt.shared::<u32>(bfs_step_len(n)).unwrap());
            let mut want = level.to_vec();
            for depth in 0..40 {
                rt.launch(&bfs_step(depth), (&d_row, &d_source, &level, &mut next, &mut found)).unwrap();
                let after = reference::bfs_step(depth, &row_ptr, &source, &want);
                let new = after.iter().zip(&want).filter(|(a, b)| a != b).count();
                assert_eq!(found.iter().sum::<u32>() as usize, new, "{kind}: {n} nodes, depth {depth}");
                assert!(next[..] == after[..], "{kind}: {n} nodes, depth {depth}");
                want = after;
                std::mem::swap(&mut level, &mut next);
                if new == 0 {
                    break;
                }
            }
        }
    }
}

#[test]
fn products_of_matrices() {
    let _turn = turn();
    for (kind, rt) in runtimes(32 * MIB) {
        let mut random = Random(15);
        for (m, inner, columns) in [(1, 1, 1), (MATMUL_ROWS, 16, 16), (3 * MATMUL_ROWS + 5, 33, 47), (64, 100, 17)] {
            let (a, b) = (random.noise(m * inner), random.noise(inner * columns));
            let (da, db) = (rt.shared_from(&a).unwrap(), rt.shared_from(&b).unwrap());
            let mut c = rt.shared::<f32>(m * columns).unwrap();
            rt.launch(&matmul(inner, columns), (&da, &db, &mut c)).unwrap();
            let want = reference::matmul(inner, columns, &a, &b);
            let off = c.iter().zip(&want).map(|(c, w)| (f64::from(*c) - w).abs()).fold(0.0, f64::max);
            assert!(off <= inner as f64 * 1e-6, "{kind}: {m}×{inner}×{columns} is off by {off}");
        }
        let (a, b) = (rt.shared::<f32>(4).unwrap(), rt.shared::<f32>(5).unwrap());
        let mut c = rt.shared::<f32>(6).unwrap();
        let e = rt.launch(&matmul(2, 3), (&a, &b, &mut c)).unwrap().wait().unwrap_err().to_string();
        assert!(e.contains("5, is no multiple of its width 3"), "{kind}: {e}");
    }
}

#[test]
fn bodies_attract_each_other() {
    let _turn = turn();
    for (kind, rt) in runtimes(32 * MIB) {
        let mut random = Random(16);
        for n in [1, 2, 300, BODIES, BODIES + 3] {
            let bodies: Vec<[f32; 4]> =
                random.noise(4 * n).as_chunks().0.iter().map(|[x, y, z, m]| [*x, *y, *z, m.abs() / n as f32]).collect();
            let (mut old, mut new) = (rt.shared_from(&bodies).unwrap(), rt.shared::<[f32; 4]>(n).unwrap());
            let mut velocity = rt.shared::<[f32; 4]>(n).unwrap();
            let (mut at, mut speed) = (bodies, vec![[0.0; 4]; n]);
            for _ in 0..3 {
                rt.launch(&nbody_step(0.01, 0.05), (&old, &mut velocity, &mut new)).unwrap();
                std::mem::swap(&mut old, &mut new);
                at = reference::nbody_step(0.01, 0.05, &at, &mut speed);
            }
            let off = old.iter().zip(&at).flat_map(|(g, w)| g.iter().zip(w)).map(|(g, w)| (g - w).abs()).fold(0.0, f32::max);
            assert!(off < 1e-5, "{kind}: {n} bodies are off by {off}");
        }
    }
}
