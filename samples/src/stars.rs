//! Finds stars and galaxies in a plane of light: maxima that stand out from the background.

#![forbid(unsafe_code)]

/// How far a maximum has to be the brightest, in pixels.
pub const REACH: usize = 4;

/// How far a star's light is followed, in pixels.
const WIDEST: usize = 60;

/// The dark between the stars.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Background {
    /// Its light: the median of the plane.
    pub level: f32,
    /// How much it varies: the median distance from the median, scaled to a standard deviation.
    pub noise: f32,
}

impl Background {
    /// Estimates it. Medians do not mind the stars.
    ///
    /// # Panics
    /// If there are no pixels.
    #[must_use]
    pub fn of(light: &[f32]) -> Self {
        let mut values = light.to_vec();
        let level = median(&mut values);
        values.iter_mut().for_each(|v| *v = (*v - level).abs());
        Self { level, noise: 1.4826 * median(&mut values) }
    }

    /// What is brighter than this stands out.
    #[must_use]
    pub fn threshold(&self) -> f32 {
        self.level + (25.0 * self.noise).max(0.05)
    }
}

fn median(values: &mut [f32]) -> f32 {
    let middle = values.len() / 2;
    *values.select_nth_unstable_by(middle, f32::total_cmp).1
}

/// A star or galaxy.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Star {
    /// Its column.
    pub x: usize,
    /// Its row.
    pub y: usize,
    /// The light of its brightest pixel.
    pub peak: f32,
    /// Its light above the background, in all.
    pub flux: f32,
    /// Where its light ends, in pixels from its middle.
    pub radius: usize,
}

/// The stars in a plane of `width` columns, the brightest first. Maxima within the light of a brighter star count as its part.
///
/// # Panics
/// If `width` is 0 or does not divide the number of pixels, or there are none.
#[must_use]
pub fn find(width: usize, light: &[f32]) -> Vec<Star> {
    assert!(width > 0 && light.len().is_multiple_of(width), "a plane of {width} columns");
    let background = Background::of(light);
    let threshold = background.threshold();
    let peaks = (0..light.len()).filter(|i| light[*i] > threshold && is_maximum(width, light, *i));
    let mut stars: Vec<Star> = peaks.map(|i| measure(width, light, i, background)).collect();
    stars.sort_by(|a, b| b.flux.total_cmp(&a.flux).then((a.y, a.x).cmp(&(b.y, b.x))));
    let mut kept: Vec<Star> = Vec::new();
    for star in stars {
        let inside = |k: &Star| star.x.abs_diff(k.x).pow(2) + star.y.abs_diff(k.y).pow(2) <= k.radius.pow(2);
        if !kept.iter().any(inside) {
            kept.push(star);
        }
    }
    kept
}

/// Whether pixel `i` is the brightest within [`REACH`]; of equals the first one is.
#[must_use]
pub fn is_maximum(width: usize, light: &[f32], i: usize) -> bool {
    let (x, y) = (i % width, i / width);
    let rows = y.saturating_sub(REACH)..(y + REACH + 1).min(light.len() / width);
    let columns = x.saturating_sub(REACH)..(x + REACH + 1).min(width);
    rows.flat_map(|r| columns.clone().map(move |c| r * width + c))
        .all(|j| light[j] < light[i] || (light[j] == light[i] && j >= i))
}

/// Follows the light outwards, ring by ring, until it is as dark as the background or brighter again: another star's light.
fn measure(width: usize, light: &[f32], i: usize, background: Background) -> Star {
    let (x, y) = (i % width, i / width);
    let height = light.len() / width;
    let dark = background.level + (4.0 * background.noise).max(0.01);
    let (mut flux, mut radius, mut last) = (0.0, 0, f32::INFINITY);
    for r in 0..WIDEST {
        let (mut sum, mut n) = (0.0, 0);
        for (px, py) in ring(x, y, r, width, height) {
            sum += light[py * width + px];
            n += 1;
        }
        let mean = sum / n.max(1) as f32;
        if n == 0 || mean < dark || mean > last * 1.02 {
            break;
        }
        (flux, radius, last) = (flux + sum - n as f32 * background.level, r, mean);
    }
    Star { x, y, peak: light[i], flux, radius: radius.max(2) }
}

/// The pixels of a plane that are `r` pixels away from (`x`, `y`), rounded.
fn ring(x: usize, y: usize, r: usize, width: usize, height: usize) -> impl Iterator<Item = (usize, usize)> {
    let rows = y.saturating_sub(r)..(y + r + 1).min(height);
    let columns = x.saturating_sub(r)..(x + r + 1).min(width);
    rows.flat_map(move |py| columns.clone().map(move |px| (px, py))).filter(move |(px, py)| {
        let far = (px.abs_diff(x).pow(2) + py.abs_diff(y).pow(2)) as f32;
        far.sqrt().round() as usize == r
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A dark plane with noise, and round stars at known places.
    fn field(width: usize, height: usize, stars: &[(usize, usize, f32, f32)]) -> Vec<f32> {
        let mut state = 7_u32;
        let mut noise = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            0.004 * (state >> 8) as f32 / (1 << 24) as f32
        };
        let mut light: Vec<f32> = (0..width * height).map(|_| 0.05 + noise()).collect();
        for (x, y, peak, sigma) in stars {
            for (i, v) in light.iter_mut().enumerate() {
                let far = (i % width).abs_diff(*x).pow(2) + (i / width).abs_diff(*y).pow(2);
                *v += peak * (-0.5 * far as f32 / sigma.powi(2)).exp();
            }
        }
        light
    }

    #[test]
    fn finds_the_stars_that_are_there() {
        let planted = [(20, 20, 0.8, 3.0), (70, 15, 0.5, 2.0), (50, 50, 0.3, 1.5), (0, 79, 0.6, 2.0), (99, 0, 0.2, 1.5)];
        let light = field(100, 80, &planted);
        let found = find(100, &light);
        let mut places: Vec<_> = found.iter().map(|s| (s.x, s.y)).collect();
        assert_eq!(places[0], (20, 20), "the brightest first");
        let mut expect: Vec<_> = planted.iter().map(|s| (s.0, s.1)).collect();
        places.sort_unstable();
        expect.sort_unstable();
        assert_eq!(places, expect);
        let brightest = found[0];
        assert!((5..=14).contains(&brightest.radius) && (brightest.peak - 0.85).abs() < 0.02, "{brightest:?}");
        // The light under a round hill: 2π · peak · sigma².
        assert!((brightest.flux / (std::f32::consts::TAU * 0.8 * 9.0) - 1.0).abs() < 0.1, "{brightest:?}");
    }

    #[test]
    fn nothing_in_the_dark() {
        assert!(find(100, &field(100, 80, &[])).is_empty());
        assert!(find(3, &[0.5; 9]).is_empty());
        assert!(find(1, &[0.5]).is_empty());
    }

    #[test]
    fn equals_are_one_star() {
        let mut light = vec![0.0; 400];
        light[105] = 1.0;
        light[106] = 1.0;
        assert_eq!(find(20, &light).len(), 1);
        assert!(is_maximum(20, &light, 105) && !is_maximum(20, &light, 106));
    }

    #[test]
    fn background_does_not_mind_stars() {
        let b = Background::of(&field(60, 60, &[(30, 30, 0.9, 4.0)]));
        assert!((b.level - 0.052).abs() < 0.002 && b.noise < 0.003, "{b:?}");
    }
}
