//! Gaussian blur of a plane, in two passes: along rows, then along columns.
//!
//! A two-dimensional Gaussian is the product of two one-dimensional ones, so two passes of `2·radius + 1` taps do the work of
//! `(2·radius + 1)²`. Columns beyond the border count as the border's (clamp to edge).
//!
//! **How the weights reach the kernel.** They are computed once, on the host, in `f64`, and travel in the plain value. So all
//! forms of the kernel use the same bits (exponentials differ between devices), and no group computes them anew. The curve is
//! symmetric and only one half is stored, up to [`Gaussian::MAX_RADIUS`] of 16, which is 33 taps.

mod rust;

use bytemuck::{Pod, Zeroable};
use sterna_hal::kernel::{Each, EachOut, Halo, Kernel, halo_rows, rows, rows_out};

use crate::chunks::plane_width;
use crate::forms::spirv;
use crate::tile_rows;

/// The taps of a Gaussian blur: a symmetric, normalised curve, cut off at a radius.
///
/// ```
/// use sterna_kernels::Gaussian;
/// let g = Gaussian::new(1.5);
/// assert_eq!(g.radius(), 5);
/// assert_eq!(g.weight(-2), g.weight(2));
/// let sum: f32 = (-5..=5).map(|i| g.weight(i)).sum();
/// assert!((sum - 1.0).abs() < 1e-6);
/// ```
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Debug, Pod, Zeroable)]
pub struct Gaussian {
    radius: u32,
    /// Weights of the distances 0 to `radius`, then zeros.
    half: [f32; Gaussian::MAX_RADIUS + 1],
}

impl Gaussian {
    /// The largest radius, in pixels.
    pub const MAX_RADIUS: usize = 16;

    /// The curve with standard deviation `sigma` (in pixels), cut off at the first whole pixel from 3 `sigma` on. What is cut
    /// off is less than 0.3 %, and given back by normalising.
    ///
    /// # Panics
    /// If `sigma` is not positive, or above 16/3. For a wider blur, blur twice: the squares of the deviations add up.
    #[must_use]
    pub fn new(sigma: f32) -> Self {
        let widest = Self::MAX_RADIUS as f32 / 3.0;
        assert!(sigma > 0.0 && sigma <= widest, "sigma is {sigma}, not within 0 to {widest}; for a wider blur, blur twice");
        Self::with_radius(sigma, ((3.0 * sigma).ceil() as usize).min(Self::MAX_RADIUS))
    }

    /// The curve with standard deviation `sigma` (in pixels), cut off beyond `radius` pixels. Radius 0 changes nothing; a large
    /// `sigma` makes it a moving average.
    ///
    /// # Panics
    /// If `sigma` is not positive and finite, or `radius` is above [`MAX_RADIUS`](Self::MAX_RADIUS).
    #[must_use]
    pub fn with_radius(sigma: f32, radius: usize) -> Self {
        assert!(sigma > 0.0 && sigma.is_finite(), "sigma is {sigma}, which is no positive number");
        assert!(radius <= Self::MAX_RADIUS, "radius is {radius}, and at most {}", Self::MAX_RADIUS);
        let curve = |i: usize| (-0.5 * (i as f64 / f64::from(sigma)).powi(2)).exp();
        let sum = 1.0 + 2.0 * (1..=radius).map(curve).sum::<f64>();
        let mut half = [0.0; Self::MAX_RADIUS + 1];
        for (i, weight) in half[..=radius].iter_mut().enumerate() {
            *weight = (curve(i) / sum) as f32;
        }
        Self { radius: radius as u32, half }
    }

    /// How many pixels it looks to either side.
    #[must_use]
    pub fn radius(&self) -> usize {
        self.radius as usize
    }

    /// The weight of the pixel `offset` away; 0 beyond the radius.
    #[must_use]
    pub fn weight(&self, offset: i32) -> f32 {
        self.half.get(offset.unsigned_abs() as usize).copied().unwrap_or(0.0)
    }

    /// Weights of the distances from 0 to the radius.
    fn half(&self) -> &[f32] {
        &self.half[..=self.radius()]
    }
}

/// The plain value.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Blur {
    width: u32,
    taps: Gaussian,
}

/// Blurs a plane along its rows.
///
/// Launched with `(&src, &mut dst)`: planes of `width` columns of `f32`, row after row, of the same length, which is a multiple
/// of `width`; otherwise the launch fails. Any height, and any width, narrower than the curve too. With [`blur_cols`] before or
/// after it, it is the two-dimensional blur. An image of several channels is a plane for each.
///
/// ```
/// use sterna_kernels::{Gaussian, blur_cols, blur_rows, reference};
/// let g = Gaussian::new(1.0);
/// let (along, down) = (blur_rows(640, &g), blur_cols(640, &g));
/// assert_eq!(along.params()[0].mapping.groups(640 * 480), down.params()[0].mapping.groups(640 * 480));
///
/// // A white dot spreads, and no light is lost.
/// let dot = [0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0];
/// let row = reference::blur_rows(7, &g, &dot);
/// assert!(row[3] < 0.5 && (row.iter().sum::<f32>() - 1.0).abs() < 1e-6);
/// ```
///
/// # Panics
/// If `width` is 0 or does not fit 32 bits.
#[must_use]
pub fn blur_rows(width: usize, taps: &Gaussian) -> Kernel<(Each<f32>, EachOut<f32>)> {
    let value = Blur { width: plane_width(width), taps: *taps };
    let count = tile_rows(width, 0);
    spirv!(Kernel::new("blur_rows", value, (rows(width, count), rows_out(width, count)), rust::along_rows), "rows")
}

/// Blurs a plane along its columns. Everything else is as with [`blur_rows`].
///
/// A group reads [`radius`](Gaussian::radius) rows above and below its own.
///
/// ```
/// use sterna_hal::kernel::Mapping;
/// use sterna_kernels::{Gaussian, blur_cols};
/// let kernel = blur_cols(640, &Gaussian::new(1.0));
/// assert!(matches!(kernel.params()[0].mapping, Mapping::Halo { reach: 1920, .. }));
/// ```
///
/// # Panics
/// If `width` is 0 or does not fit 32 bits.
#[must_use]
pub fn blur_cols(width: usize, taps: &Gaussian) -> Kernel<(Halo<f32>, EachOut<f32>)> {
    let value = Blur { width: plane_width(width), taps: *taps };
    let (reach, count) = (taps.radius(), tile_rows(width, taps.radius()));
    let params = (halo_rows(width, count, reach), rows_out(width, count));
    spirv!(Kernel::new("blur_cols", value, params, rust::along_cols), "cols")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::reference;
    use crate::testing::{Buf, Random, close, heights, run};

    fn taps() -> impl Strategy<Value = Gaussian> {
        (0.1_f32..20.0, 0..=Gaussian::MAX_RADIUS).prop_map(|(sigma, radius)| Gaussian::with_radius(sigma, radius))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn rows_equal_the_reference((width, height) in heights(0), g in taps(), seed: u64) {
            let src = Random(seed).noise(width * height);
            let mut dst = vec![0.0; src.len()];
            run(&blur_rows(width, &g), seed, &[Buf::read(&src), Buf::write(&mut dst)]);
            close(&dst, &reference::blur_rows(width, &g, &src), 1e-6);
        }

        #[test]
        fn columns_equal_the_reference((width, height, g) in taps().prop_flat_map(|g| {
            heights(g.radius()).prop_map(move |(width, height)| (width, height, g))
        }), seed: u64) {
            let src = Random(seed).noise(width * height);
            let mut dst = vec![0.0; src.len()];
            run(&blur_cols(width, &g), seed, &[Buf::read(&src), Buf::write(&mut dst)]);
            close(&dst, &reference::blur_cols(width, &g, &src), 1e-6);
        }

        #[test]
        fn weights_follow_the_curve(sigma in 0.2_f32..5.3) {
            let g = Gaussian::new(sigma);
            let radius = g.radius() as i32;
            let sum: f64 = (-radius..=radius).map(|i| f64::from(g.weight(i))).sum();
            prop_assert!((sum - 1.0).abs() < 1e-6);
            let ratio = f64::from(g.weight(1)) / f64::from(g.weight(0));
            prop_assert!((ratio - (-0.5 / f64::from(sigma).powi(2)).exp()).abs() < 1e-6);
            prop_assert_eq!(g.weight(radius + 1), 0.0);
        }
    }

    #[test]
    fn the_value_fits_push_constants() {
        // Two addresses and two lengths of 8 bytes beside it.
        assert!(size_of::<Blur>() + 4 * 8 <= 128);
    }

    #[test]
    fn radius_0_copies() {
        let (src, mut dst) = (Random(1).noise(100), vec![0.0; 100]);
        run(&blur_cols(10, &Gaussian::with_radius(1.0, 0)), 0, &[Buf::read(&src), Buf::write(&mut dst)]);
        assert_eq!(dst, src);
    }

    #[test]
    #[should_panic(expected = "no multiple of its width 4")]
    fn a_ragged_plane_fails() {
        run(&blur_rows(4, &Gaussian::new(1.0)), 0, &[Buf::read(&[0.0_f32; 10]), Buf::write(&mut [0.0_f32; 10])]);
    }

    #[test]
    #[should_panic(expected = "blur twice")]
    fn too_wide_a_curve_is_refused() {
        let _ = Gaussian::new(6.0);
    }
}
