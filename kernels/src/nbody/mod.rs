//! `nbody_step`: bodies that attract each other.

use bytemuck::{Pod, Zeroable};
use sterna_hal::kernel::{EachMut, EachOut, Group, Kernel, Whole, each_mut, each_out, whole};

use crate::chunks::same_len;
use crate::forms::spirv;

/// Bodies a group: 16 KiB of positions, four whole pages.
pub const BODIES: usize = 1024;

/// The plain value.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Step {
    dt: f32,
    softening: f32,
}

/// One step of bodies under their own gravity, every body against every other.
///
/// Launched with `(&old, &mut velocity, &mut new)`, buffers of `[f32; 4]` of the same length; if they differ, the launch fails. A
/// position is *x, y, z* and the body's mass, in units in which the constant of gravity is 1; a velocity is *x, y, z* and a number
/// that stays as it is. With *r* from one body to another,
///
/// ```text
/// velocity += dt · Σ mass · r / (|r|² + softening²)^1.5
/// new       = old + dt · velocity
/// ```
///
/// which is the semi-implicit Euler method (E. Hairer, C. Lubich, G. Wanner: Geometric Numerical Integration, I.1). A body
/// does not attract itself, and `softening` keeps two bodies at one place from an infinite force. Sums are carried in `f32`.
///
/// ```
/// use sterna_kernels::{nbody_step, reference};
/// assert_eq!(nbody_step(0.01, 0.1).params()[0].elem, 16);
/// // Two bodies at rest fall towards each other.
/// let mut velocity = [[0.0; 4]; 2];
/// let new = reference::nbody_step(0.5, 0.0, &[[0.0, 0.0, 0.0, 1.0], [2.0, 0.0, 0.0, 1.0]], &mut velocity);
/// assert_eq!(velocity[0][0], 0.125);
/// assert_eq!(new[1][0], 2.0 - 0.5 * 0.125);
/// ```
///
/// # Panics
/// If `dt` or `softening` is not finite, or `softening` is negative.
#[must_use]
#[expect(clippy::type_complexity, reason = "the list of parameters is what the signature is there to tell")]
pub fn nbody_step(dt: f32, softening: f32) -> Kernel<(Whole<[f32; 4]>, EachMut<[f32; 4]>, EachOut<[f32; 4]>)> {
    assert!(dt.is_finite() && softening.is_finite() && softening >= 0.0, "dt is {dt}, softening {softening}");
    let params = (whole(), each_mut(BODIES), each_out(BODIES));
    spirv!(Kernel::new("nbody_step", Step { dt, softening }, params, body), "nbody_step")
}

fn body(group: Group, Step { dt, softening }: Step, old: &[[f32; 4]], velocity: &mut [[f32; 4]], new: &mut [[f32; 4]]) {
    same_len("nbody_step", velocity.len(), new.len());
    // A grid may be a little larger than the buffers ask for, where a device wants it rectangular.
    if new.is_empty() {
        return;
    }
    let first = group.index() * BODIES;
    let Some(own) = old.get(first..first + new.len()) else {
        panic!("nbody_step: {} positions, and velocities up to {}", old.len(), first + new.len());
    };
    let soft = softening * softening;
    for ((at, v), new) in own.iter().zip(velocity).zip(new) {
        let mut pull = [0.0_f32; 3];
        for other in old {
            let r = [other[0] - at[0], other[1] - at[1], other[2] - at[2]];
            let d = r[0] * r[0] + r[1] * r[1] + r[2] * r[2] + soft;
            // At distance 0 it is the body itself, or one that pulls in no direction.
            let by = if d > 0.0 { other[3] / (d * d.sqrt()) } else { 0.0 };
            for (pull, r) in pull.iter_mut().zip(r) {
                *pull += by * r;
            }
        }
        for i in 0..3 {
            v[i] += dt * pull[i];
            new[i] = at[i] + dt * v[i];
        }
        new[3] = at[3];
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::reference;
    use crate::testing::{Buf, Random, run};

    /// Positions in a cube, with masses that add up to about 1.
    fn bodies(n: usize, seed: u64) -> Vec<[f32; 4]> {
        let v = Random(seed).noise(4 * n);
        v.as_chunks::<4>().0.iter().map(|v| [v[0], v[1], v[2], v[3].abs() / n as f32]).collect()
    }

    fn step(old: &[[f32; 4]], velocity: &mut [[f32; 4]], seed: u64) -> Vec<[f32; 4]> {
        let mut new = vec![[0.0; 4]; velocity.len()];
        run(&nbody_step(0.01, 0.05), seed, &[Buf::read(old), Buf::write(velocity), Buf::write(&mut new)]);
        new
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(8))]

        #[test]
        fn equals_the_reference(n in prop_oneof![0_usize..5, 1000_usize..1050, 2000_usize..2060], seed: u64) {
            let old = bodies(n, seed);
            let mut velocity = bodies(n, !seed);
            let mut expect = velocity.clone();
            let new = step(&old, &mut velocity, seed);
            let moved = reference::nbody_step(0.01, 0.05, &old, &mut expect);
            for (got, want) in velocity.iter().chain(&new).flatten().zip(expect.iter().chain(&moved).flatten()) {
                prop_assert!((got - want).abs() <= 1e-5 * want.abs().max(1.0), "{got} for {want}");
            }
        }
    }

    #[test]
    fn momentum_is_kept() {
        let old = bodies(1500, 3);
        let mut velocity = vec![[0.0, 0.0, 0.0, 9.0]; 1500];
        step(&old, &mut velocity, 4);
        for i in 0..3 {
            let sum: f64 = velocity.iter().zip(&old).map(|(v, p)| f64::from(v[i]) * f64::from(p[3])).sum();
            assert!(sum.abs() < 1e-6, "{sum}");
        }
        assert!(velocity.iter().all(|v| v[3] == 9.0));
    }

    #[test]
    #[should_panic(expected = "nbody_step: 2 positions, and velocities up to 3")]
    fn fewer_positions_fail() {
        step(&bodies(2, 0), &mut [[0.0; 4]; 3], 0);
    }

    #[test]
    #[should_panic(expected = "softening")]
    fn a_negative_softening_is_refused() {
        let _ = nbody_step(0.1, -1.0);
    }
}
