//! A picture of the sky: decoded into shared memory, denoised on the device, searched for stars.

#![forbid(unsafe_code)]

use std::path::Path;

use anyhow::{Context, Result, ensure};
use image::{Rgb, RgbImage};
use sterna::kernel::{Each, EachOut, Group, Kernel, each, each_out};
use sterna::kernels::{Gaussian, STREAM_CHUNK, blur_cols, blur_rows, reference};
use sterna::{Runtime, Shared};

use crate::input;
use crate::moved::Moved;
use crate::stars::{self, Star};
use crate::{forms, picture, places, report};

/// The Hubble deep field; see `data/README.md`.
const HUBBLE: &[u8] = include_bytes!("../data/hubble_deep_field.jpg");

/// How far device and reference may differ; light is from 0 to 1.
const TOLERANCE: f32 = 1e-5;

/// The Hubble deep field.
///
/// # Errors
/// None, unless the picture that was compiled in is broken.
pub fn hubble() -> Result<RgbImage> {
    from_bytes(HUBBLE).context("the picture that was compiled in")
}

/// A picture from a file, JPEG or PNG.
///
/// # Errors
/// A file that cannot be read or decoded.
pub fn from_file(path: &Path) -> Result<RgbImage> {
    from_bytes(&input::read(path)?).with_context(|| format!("{} is no JPEG or PNG", path.display()))
}

/// A picture from the contents of a file, JPEG or PNG.
///
/// # Errors
/// Bytes that cannot be decoded.
pub fn from_bytes(bytes: &[u8]) -> Result<RgbImage> {
    Ok(image::load_from_memory(bytes)?.into_rgb8())
}

/// Three planes to one: how bright a pixel looks.
#[expect(clippy::type_complexity, reason = "the list of parameters is what the signature is there to tell")]
fn brightness() -> Kernel<(Each<f32>, Each<f32>, Each<f32>, EachOut<f32>)> {
    fn body(_: Group, (): (), r: &[f32], g: &[f32], b: &[f32], light: &mut [f32]) {
        for (i, light) in light.iter_mut().enumerate() {
            *light = weigh(r[i], g[i], b[i]);
        }
    }
    let chunk = STREAM_CHUNK;
    let kernel = Kernel::new("brightness", (), (each(chunk), each(chunk), each(chunk), each_out(chunk)), body);
    forms::with(kernel, include_bytes!("glsl/brightness.spv"))
}

fn weigh(r: f32, g: f32, b: f32) -> f32 {
    0.299 * r + 0.587 * g + 0.114 * b
}

/// A picture with its stars.
#[derive(Debug)]
pub struct Sky {
    width: usize,
    taps: Gaussian,
    planes: [Shared<f32>; 3],
    soft: [Shared<f32>; 3],
    light: Shared<f32>,
    /// Stars and galaxies, the brightest first.
    pub stars: Vec<Star>,
    /// What moved.
    pub moved: Moved,
    /// Where the pages of the first plane and of its denoised form were when the device had done its part.
    pub places: [String; 2],
}

/// Denoises `picture` with a Gaussian of `sigma` pixels and finds the stars.
///
/// # Errors
/// A picture without pixels; those of the runtime.
pub fn run(rt: &Runtime, picture: &RgbImage, sigma: f32) -> Result<Sky> {
    let (width, len) = (picture.width() as usize, picture.pixels().len());
    ensure!(len > 0, "a picture without pixels");
    let before = rt.stats();
    let plane = || rt.shared::<f32>(len);
    let (mut planes, mut soft) = ([plane()?, plane()?, plane()?], [plane()?, plane()?, plane()?]);
    let (mut between, mut light) = (plane()?, plane()?);
    for (channel, plane) in planes.iter_mut().enumerate() {
        // A guard: these pages stay on the host until it is dropped.
        for (value, pixel) in plane.host_mut(..)?.iter_mut().zip(picture.pixels()) {
            *value = f32::from(pixel[channel]) / 255.0;
        }
    }

    let taps = Gaussian::new(sigma);
    for (plane, soft) in planes.iter().zip(&mut soft) {
        rt.launch(&blur_rows(width, &taps), (plane, &mut between))?;
        rt.launch(&blur_cols(width, &taps), (&between, soft))?;
    }
    let [r, g, b] = &soft;
    rt.launch(&brightness(), (r, g, b, &mut light))?.wait()?;
    let places = [places::bar(&planes[0], 16)?, places::bar(&soft[0], 16)?];

    let stars = stars::find(width, &light);
    Ok(Sky { moved: Moved::since(rt, &before), width, taps, planes, soft, light, stars, places })
}

impl Sky {
    /// Compares the denoised planes with a plain computation and each star with its surroundings, and says so.
    ///
    /// # Errors
    /// The first difference.
    pub fn check(&self) -> Result<String> {
        let mut expect = Vec::new();
        for (channel, (plane, soft)) in self.planes.iter().zip(&self.soft).enumerate() {
            let blurred = reference::blur_cols(self.width, &self.taps, &reference::blur_rows(self.width, &self.taps, plane));
            let off = soft.iter().zip(&blurred).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            ensure!(off <= TOLERANCE, "plane {channel} differs by {off:e} from a plain computation");
            expect.push(blurred);
        }
        // The stars, judged by the plain computation's light.
        let light: Vec<f32> = (0..self.light.len()).map(|i| weigh(expect[0][i], expect[1][i], expect[2][i])).collect();
        let threshold = stars::Background::of(&light).threshold();
        let height = light.len() / self.width;
        for star in &self.stars {
            let peak = light[star.y * self.width + star.x];
            ensure!(peak > threshold - TOLERANCE, "the star at {}, {} does not stand out", star.x, star.y);
            for y in star.y.saturating_sub(stars::REACH)..(star.y + stars::REACH + 1).min(height) {
                for x in star.x.saturating_sub(stars::REACH)..(star.x + stars::REACH + 1).min(self.width) {
                    let other = light[y * self.width + x];
                    ensure!(other <= peak + TOLERANCE, "{x}, {y} is brighter than the star at {}, {}", star.x, star.y);
                }
            }
        }
        Ok(format!(
            "{} values equal a plain blur to {TOLERANCE:.0e}; each of {} stars is the maximum of its surroundings",
            report::count(3 * self.light.len()),
            report::count(self.stars.len())
        ))
    }

    /// The denoised picture, with a circle around each star.
    #[must_use]
    pub fn picture(&self) -> RgbImage {
        let [r, g, b] = [&self.soft[0][..], &self.soft[1][..], &self.soft[2][..]];
        let byte = |v: f32| (v.clamp(0.0, 1.0) * 255.0).round() as u8;
        let mut out = RgbImage::from_fn(self.width as u32, (r.len() / self.width) as u32, |x, y| {
            let i = y as usize * self.width + x as usize;
            Rgb([byte(r[i]), byte(g[i]), byte(b[i])])
        });
        for star in &self.stars {
            picture::circle(&mut out, (star.x, star.y), star.radius as f32 + 2.0, [90, 255, 120]);
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_stars_of_a_small_picture() {
        let picture = RgbImage::from_fn(61, 43, |x, y| {
            let near = |sx: u32, sy: u32| x.abs_diff(sx).pow(2) + y.abs_diff(sy).pow(2) <= 4;
            if near(15, 12) || near(45, 30) { Rgb([250, 240, 200]) } else { Rgb([9, 8, 10]) }
        });
        let rt = crate::devices::open(Some(64 << 20)).unwrap();
        let sky = run(&rt, &picture, 1.0).unwrap();
        sky.check().unwrap();
        let mut found: Vec<_> = sky.stars.iter().map(|s| (s.x, s.y)).collect();
        found.sort_unstable();
        assert_eq!(found, [(15, 12), (45, 30)]);
        assert_eq!(sky.picture().dimensions(), (61, 43));
    }

    #[test]
    fn pictures_that_are_none() {
        assert!(from_file(Path::new("no/such/file")).unwrap_err().to_string().contains("no/such/file"));
        let rt = crate::devices::open(Some(64 << 20)).unwrap();
        assert!(run(&rt, &RgbImage::new(0, 0), 1.0).is_err());
    }
}
