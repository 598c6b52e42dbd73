//! Of kernels in which everything meets everything.

/// `A · B`, as [`matmul`](crate::matmul), in `f64`.
///
/// ```
/// assert_eq!(sterna_kernels::reference::matmul(1, 2, &[3.0], &[1.0, 2.0]), [3.0, 6.0]);
/// ```
#[must_use]
pub fn matmul(inner: usize, columns: usize, a: &[f32], b: &[f32]) -> Vec<f64> {
    assert!(a.len().is_multiple_of(inner) && b.len() == inner * columns);
    let mut c = vec![0.0; a.len() / inner * columns];
    for (row, c) in c.chunks_mut(columns).enumerate() {
        for (column, c) in c.iter_mut().enumerate() {
            for i in 0..inner {
                *c += f64::from(a[row * inner + i]) * f64::from(b[i * columns + column]);
            }
        }
    }
    c
}

/// Positions after one step of bodies under their own gravity, as [`nbody_step`](crate::nbody_step); velocities change in place. Sums
/// are carried in `f64`.
///
/// ```
/// let mut velocity = [[1.0, 0.0, 0.0, 0.0]];
/// let new = sterna_kernels::reference::nbody_step(0.5, 0.1, &[[0.0, 0.0, 0.0, 1.0]], &mut velocity);
/// assert_eq!(new, [[0.5, 0.0, 0.0, 1.0]]);
/// ```
#[must_use]
pub fn nbody_step(dt: f32, softening: f32, old: &[[f32; 4]], velocity: &mut [[f32; 4]]) -> Vec<[f32; 4]> {
    assert_eq!(old.len(), velocity.len());
    let mut new = old.to_vec();
    for (i, at) in old.iter().enumerate() {
        let mut pull = [0.0_f64; 3];
        for other in old {
            let r: [f64; 3] = std::array::from_fn(|k| f64::from(other[k]) - f64::from(at[k]));
            let d = r.iter().map(|r| r * r).sum::<f64>() + f64::from(softening).powi(2);
            if d > 0.0 {
                pull.iter_mut().zip(r).for_each(|(p, r)| *p += f64::from(other[3]) * r / d.powf(1.5));
            }
        }
        for k in 0..3 {
            velocity[i][k] = (f64::from(velocity[i][k]) + f64::from(dt) * pull[k]) as f32;
            new[i][k] = (f64::from(at[k]) + f64::from(dt) * f64::from(velocity[i][k])) as f32;
        }
    }
    new
}
