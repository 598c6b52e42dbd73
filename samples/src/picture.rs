//! Pictures: planes of light in, PNG files out.

#![forbid(unsafe_code)]

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use image::{Rgb, RgbImage};

/// Writes `picture` as `name` in folder `out`, which is made if it does not exist, and says where.
///
/// # Errors
/// A folder or file that cannot be written.
pub fn write(picture: &RgbImage, out: &Path, name: &str) -> Result<PathBuf> {
    fs::create_dir_all(out)
        .with_context(|| format!("cannot make the folder {} (choose another with --out)", out.display()))?;
    let path = out.join(name);
    picture.save(&path).with_context(|| format!("cannot write {} (choose another folder with --out)", path.display()))?;
    Ok(path)
}

/// A picture of `width` columns whose pixels are `0x00RRGGBB`.
#[must_use]
pub fn packed(width: usize, pixels: &[u32]) -> RgbImage {
    RgbImage::from_fn(width as u32, (pixels.len() / width) as u32, |x, y| {
        let [_, r, g, b] = pixels[y as usize * width + x as usize].to_be_bytes();
        Rgb([r, g, b])
    })
}

/// A plane of `width` columns of values from 0 to 1 in the colours of glowing metal, at most `most` pixels wide: each pixel is
/// the mean of the elements that it stands for.
#[must_use]
pub fn glow(width: usize, plane: &[f32], most: usize) -> RgbImage {
    let scale = width.div_ceil(most).max(1);
    let (columns, rows) = (width.div_ceil(scale), (plane.len() / width).div_ceil(scale));
    let mut sums = vec![(0.0_f32, 0_u32); columns * rows];
    for (y, row) in plane.chunks_exact(width).enumerate() {
        let sums = &mut sums[y / scale * columns..][..columns];
        for (part, sum) in row.chunks(scale).zip(sums) {
            sum.0 += part.iter().sum::<f32>();
            sum.1 += part.len() as u32;
        }
    }
    RgbImage::from_fn(columns as u32, rows as u32, |x, y| {
        let (sum, n) = sums[y as usize * columns + x as usize];
        heat_colour(sum / n as f32)
    })
}

/// Black, red, orange, yellow, white.
fn heat_colour(v: f32) -> Rgb<u8> {
    let v = v.clamp(0.0, 1.0);
    let part = |from: f32, to: f32| (((v - from) / (to - from)).clamp(0.0, 1.0) * 255.0) as u8;
    Rgb([part(0.0, 0.45), part(0.3, 0.85), part(0.75, 1.0)])
}

/// Draws a circle of `radius` pixels around (`x`, `y`); what lies outside the picture is left out.
pub fn circle(picture: &mut RgbImage, (x, y): (usize, usize), radius: f32, colour: [u8; 3]) {
    let steps = (radius * 8.0).ceil().max(8.0) as u32;
    for i in 0..steps {
        let angle = std::f32::consts::TAU * i as f32 / steps as f32;
        let (px, py) = ((x as f32 + radius * angle.cos()).round(), (y as f32 + radius * angle.sin()).round());
        if px >= 0.0 && py >= 0.0 && px < picture.width() as f32 && py < picture.height() as f32 {
            picture.put_pixel(px as u32, py as u32, Rgb(colour));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn circles_stay_inside() {
        let mut p = RgbImage::new(20, 10);
        circle(&mut p, (0, 0), 5.0, [1, 2, 3]);
        circle(&mut p, (19, 9), 50.0, [1, 2, 3]);
        assert_eq!(p.get_pixel(5, 0).0, [1, 2, 3]);
        assert_eq!(p.get_pixel(10, 5).0, [0, 0, 0]);
    }

    #[test]
    fn glow_is_a_mean() {
        // Two columns wide: each pixel stands for 2 × 2 elements.
        let p = glow(4, &[0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 1.0, 1.0], 2);
        assert_eq!(p.dimensions(), (2, 1));
        assert_eq!((p.get_pixel(0, 0).0, p.get_pixel(1, 0).0), ([0, 0, 0], [255, 255, 255]));
        // A last row and column that are not full.
        assert_eq!(glow(5, &[1.0; 15], 2).dimensions(), (2, 1));
        assert_eq!(glow(5, &[1.0; 15], 2).get_pixel(1, 0).0, [255, 255, 255]);
    }

    #[test]
    fn packed_pixels() {
        assert_eq!(packed(1, &[0x0001_0203]).get_pixel(0, 0).0, [1, 2, 3]);
    }
}
