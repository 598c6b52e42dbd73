//! Every stock kernel's SPIR-V form against the plain sequential version, at lengths about its chunk.

use sterna::kernels::{
    Gaussian, REDUCE_CHUNK, STREAM_CHUNK, blur_cols, blur_rows, fill, pagerank_contributions, pagerank_step,
    reduce_abs_diff, reduce_sum, reduce_sum_len, reduce_sum_u64, reference, saxpy, spmv_csr, stencil5, tile_rows,
};

use crate::common::MIB;
use crate::random::Random;
use crate::{runtimes, turn};

pub(crate) fn about(chunk: usize) -> [usize; 6] {
    [1, 7, chunk - 1, chunk, chunk + 1, 3 * chunk - 5]
}

#[track_caller]
fn close(what: &str, got: &[f32], want: &[f32], tolerance: f32) {
    assert_eq!(got.len(), want.len(), "{what}");
    let off = got.iter().zip(want).position(|(g, w)| (g - w).abs() > tolerance || g.is_nan());
    assert!(off.is_none(), "{what}: element {} is {} instead of {}", off.unwrap(), got[off.unwrap()], want[off.unwrap()]);
}

#[test]
fn streams() {
    let _turn = turn();
    for (kind, rt) in runtimes(32 * MIB) {
        let mut random = Random(1);
        for n in about(STREAM_CHUNK) {
            let x = rt.shared_from(&random.noise(n)).unwrap();
            let mut y = rt.shared_from(&random.noise(n)).unwrap();
            let mut want = y.to_vec();
            reference::saxpy(-1.5, &x, &mut want);
            rt.launch(&saxpy(-1.5), (&x, &mut y)).unwrap().wait().unwrap();
            close(&format!("{kind}: saxpy of {n}"), &y, &want, 1e-6);
            rt.launch(&fill(0.25_f32), (&mut y,)).unwrap().wait().unwrap();
            assert!(y.iter().all(|y| *y == 0.25), "{kind}: fill of {n}");
        }
    }
}

#[test]
fn reductions() {
    let _turn = turn();
    for (kind, rt) in runtimes(32 * MIB) {
        let mut random = Random(2);
        for n in about(REDUCE_CHUNK) {
            let (x, y) = (random.noise(n), random.noise(n));
            let (dx, dy) = (rt.shared_from(&x).unwrap(), rt.shared_from(&y).unwrap());
            let mut sums = rt.shared::<f32>(reduce_sum_len(n)).unwrap();
            // Each partial sum is rounded once: half a unit of its last place.
            let tolerance = n as f64 * 1e-7;
            rt.launch(&reduce_sum(), (&dx, &mut sums)).unwrap().wait().unwrap();
            let got: f64 = sums.iter().copied().map(f64::from).sum();
            assert!((got - reference::sum(&x)).abs() < tolerance, "{kind}, {n}: {got}");
            rt.launch(&reduce_abs_diff(), (&dx, &dy, &mut sums)).unwrap().wait().unwrap();
            let got: f64 = sums.iter().copied().map(f64::from).sum();
            assert!((got - reference::abs_diff(&x, &y)).abs() < tolerance, "{kind}, {n}: {got}");
            let words: Vec<u64> = (0..n).map(|_| random.next()).collect();
            let dw = rt.shared_from(&words).unwrap();
            let mut sums = rt.shared::<u64>(reduce_sum_len(n)).unwrap();
            rt.launch(&reduce_sum_u64(), (&dw, &mut sums)).unwrap().wait().unwrap();
            assert_eq!(reference::sum_u64(&sums), reference::sum_u64(&words), "{kind}, {n}");
        }
        // What 24 bits cannot carry: one large number and many small ones.
        let mut x = vec![1.0_f32; REDUCE_CHUNK];
        x[0] = 1e9;
        let dx = rt.shared_from(&x).unwrap();
        let mut sums = rt.shared::<f32>(1).unwrap();
        rt.launch(&reduce_sum(), (&dx, &mut sums)).unwrap().wait().unwrap();
        assert_eq!(sums[0], reference::sum(&x) as f32, "{kind}: a sum in one float loses the ones");
        x[5] = f32::INFINITY;
        let dx = rt.shared_from(&x).unwrap();
        rt.launch(&reduce_sum(), (&dx, &mut sums)).unwrap().wait().unwrap();
        assert_eq!(sums[0], f32::INFINITY, "{kind}");
    }
}

#[test]
fn planes() {
    let _turn = turn();
    for (kind, rt) in runtimes(32 * MIB) {
        let mut random = Random(3);
        for (width, height) in [(1, 9), (2, 5), (3, 3), (5, 1), (640, tile_rows(640, 1) + 1), (1000, 2 * tile_rows(1000, 1))]
        {
            let old = random.noise(width * height);
            let src = rt.shared_from(&old).unwrap();
            let mut dst = rt.shared::<f32>(width * height).unwrap();
            rt.launch(&stencil5(width, 0.2), (&src, &mut dst)).unwrap().wait().unwrap();
            close(&format!("{kind}: stencil5 {width}×{height}"), &dst, &reference::stencil5(width, 0.2, &old), 1e-5);
            for taps in [Gaussian::new(0.7), Gaussian::new(5.0), Gaussian::with_radius(2.0, 0)] {
                let what = format!("{kind}: blur of {width}×{height} by {}", taps.radius());
                rt.launch(&blur_rows(width, &taps), (&src, &mut dst)).unwrap().wait().unwrap();
                close(&what, &dst, &reference::blur_rows(width, &taps, &old), 1e-5);
                rt.launch(&blur_cols(width, &taps), (&src, &mut dst)).unwrap().wait().unwrap();
                close(&what, &dst, &reference::blur_cols(width, &taps, &old), 1e-5);
            }
        }
    }
}

#[test]
fn sparse_rows() {
    let _turn = turn();
    for (kind, rt) in runtimes(32 * MIB) {
        let mut random = Random(4);
        for n in [1, 100, 4095, 4096, 4097, 9000] {
            let (row_ptr, mut col) = random.graph(n, n);
            col.push(0); // one entry that no row has, so that the list is never empty
            let (val, x) = (random.noise(col.len()), random.noise(n));
            let (d_row, d_col) = (rt.shared_from(&row_ptr).unwrap(), rt.shared_from(&col).unwrap());
            let (d_val, d_x) = (rt.shared_from(&val).unwrap(), rt.shared_from(&x).unwrap());
            let mut y = rt.shared::<f32>(n).unwrap();
            rt.launch(&spmv_csr(), (&d_row, &d_col, &d_val, &d_x, &mut y)).unwrap().wait().unwrap();
            let want: Vec<f32> = reference::spmv_csr(&row_ptr, &col, &val, &x).iter().map(|v| *v as f32).collect();
            close(&format!("{kind}: spmv of {n} rows"), &y, &want, 1e-5);

            let mut out_degree = vec![0_u32; n];
            col[..col.len() - 1].iter().for_each(|u| out_degree[*u as usize] += 1);
            let rank: Vec<f32> = (0..n).map(|_| (1.0 + random.noise(1)[0]) / n as f32).collect();
            let exact: Vec<f64> = rank.iter().map(|r| f64::from(*r)).collect();
            let (d_rank, d_out) = (rt.shared_from(&rank).unwrap(), rt.shared_from(&out_degree).unwrap());
            let mut contribution = rt.shared::<f32>(n).unwrap();
            let mut dangling = rt.shared::<f32>(reduce_sum_len(n)).unwrap();
            rt.launch(&pagerank_contributions(), (&d_rank, &d_out, &mut contribution, &mut dangling)).unwrap();
            rt.launch(&pagerank_step(0.85), (&d_row, &d_col, &contribution, &dangling, &mut y)).unwrap().wait().unwrap();
            let want = reference::pagerank_step(0.85, &row_ptr, &col, &out_degree, &exact);
            let want: Vec<f32> = want.iter().map(|v| *v as f32).collect();
            close(&format!("{kind}: a round of PageRank over {n} nodes"), &y, &want, 1e-6 / n as f32 + 1e-7);
        }
    }
}
