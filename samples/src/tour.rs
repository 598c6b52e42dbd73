//! A tour of all samples in a few seconds: short forms, on a device with so little memory that pages have to move.

#![forbid(unsafe_code)]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Result, anyhow};
use sterna::{Runtime, human};

use crate::graph::Graph;
use crate::moved::Moved;
use crate::say;
use crate::{devices, fractal, heat, hello, pagerank, picture, places, report, sky};

const MIB: u64 = 1 << 20;

/// A stop of the tour: says what happens, and returns what was checked.
type Stop = fn(&Tour) -> Result<String>;

/// The tour.
#[derive(Debug)]
pub struct Tour {
    /// Where pictures go, if they are wanted.
    pub out: Option<PathBuf>,
}

impl Tour {
    /// Goes round. True if everything was right.
    ///
    /// # Errors
    /// There is no device, or the environment asks for what is not to be had.
    pub fn run(&self) -> Result<bool> {
        let start = Instant::now();
        let rt = Runtime::new()?;
        say!("sterna: one allocation, a slice on the host and a buffer on the device; pages move to where they are used");
        for device in rt.devices() {
            say!("  device       {}", devices::describe(&device));
        }
        say!("  host faults  {}", devices::host_faults(&rt));
        say!("  policy       {} (STERNA_POLICY chooses: {})", rt.stats().policy, sterna::policy::NAMES.join(", "));
        say!("  pages        {}   (at first all are on the host)", places::LEGEND);
        drop(rt);

        let stops: [(&str, Stop); 5] = [
            ("01_hello       y = 2·x + y, line by line", Self::hello),
            ("02_own_kernel  three kernels of one's own: the Mandelbrot set", Self::own_kernel),
            ("03_pagerank    what Debian leans on", Self::pagerank),
            ("04_hubble      stars and galaxies of the Hubble deep field", Self::hubble),
            ("05_heat        four times more data than memory", Self::heat),
        ];
        let failed = stops.into_iter().filter(|(title, stop)| !self.stop(title, *stop)).count();
        let took = report::time(start.elapsed());
        match failed {
            0 => say!("\n✓ all right, in {took}"),
            n => say!("\n✗ {n} of {} stops failed, in {took}", stops.len()),
        }
        Ok(failed == 0)
    }

    fn stop(&self, title: &str, stop: Stop) -> bool {
        say!("\n{title}");
        let start = Instant::now();
        // A failed launch may also show as a panic, where the host looks at what it would have written.
        let ended = catch_unwind(AssertUnwindSafe(|| stop(self))).unwrap_or_else(|_| Err(anyhow!("it panicked")));
        let took = report::time(start.elapsed());
        match &ended {
            Ok(what) => say!("  ✓ {what} ({took})"),
            Err(e) => say!("  ✗ {e:#} ({took})"),
        }
        ended.is_ok()
    }

    fn hello(&self) -> Result<String> {
        let rt = devices::small(16 * MIB)?;
        let len = 1 << 19;
        say!("  x and y of {} each, a device with {}", human(4 * len as u64), human(devices::budget(&rt)));
        for step in hello::run(&rt, len)? {
            say!("  {:<10} x {}  y {}  moved: {}", step.what, step.places[0], step.places[1], step.moved);
        }
        Ok(format!("{} elements are right", report::count(len)))
    }

    fn own_kernel(&self) -> Result<String> {
        let rt = devices::small(2 * MIB)?;
        let fractal = fractal::run(&rt, fractal::Frame::whole_set(640, 100))?;
        for line in fractal.sketch(40).iter().skip(1).step_by(2).take(6) {
            say!("      {}", line.trim_end());
        }
        self.explain(&rt, &fractal.moved, ["counts", "pixels"], &fractal.places);
        self.keep(&fractal.picture(), "fractal.png")?;
        fractal.check()
    }

    fn pagerank(&self) -> Result<String> {
        let graph = Graph::debian()?;
        let rt = devices::small(2 * MIB)?;
        let ranking = pagerank::run(&rt, &graph)?;
        let top = ranking.top(&graph, 5);
        let list: Vec<String> = top.iter().map(|e| format!("{} ({})", e.name, report::count(e.edges))).collect();
        say!(
            "  {} packages, {} rounds; the most leaned on, and how many name them:",
            report::count(graph.names.len()),
            ranking.rounds
        );
        say!("      {}", list.join(", "));
        self.explain(&rt, &ranking.moved, ["edges", "ranks"], &ranking.places);
        ranking.check()
    }

    fn hubble(&self) -> Result<String> {
        let rt = devices::small(8 * MIB)?;
        let sky = sky::run(&rt, &sky::hubble()?, 1.5)?;
        let brightest: Vec<String> = sky.stars.iter().take(3).map(|s| format!("{}, {}", s.x, s.y)).collect();
        say!("  {} found; the brightest at {}", sky.stars.len(), brightest.join(" and "));
        self.explain(&rt, &sky.moved, ["red", "denoised"], &sky.places);
        self.keep(&sky.picture(), "hubble.png")?;
        sky.check()
    }

    fn heat(&self) -> Result<String> {
        let rt = devices::small(4 * MIB)?;
        let heat = heat::run(&rt, 6)?;
        let grid = human(4 * heat.now.len() as u64);
        say!("  2 grids of {grid}; {:.2} bytes moved for each byte used", heat.amplification());
        self.explain(&rt, &heat.moved, ["read", "written"], &heat.places);
        self.keep(&picture::glow(heat.plate.width, &heat.now, 1024), "heat.png")?;
        heat.check()
    }

    fn explain(&self, rt: &Runtime, moved: &Moved, names: [&str; 2], bars: &[String; 2]) {
        say!("  {} {}  {} {}  on a device with {}", names[0], bars[0], names[1], bars[1], human(devices::budget(rt)));
        say!("  moved: {}", moved.bytes());
        if !moved.events().is_empty() {
            say!("         {}", moved.events());
        }
    }

    fn keep(&self, picture: &image::RgbImage, name: &str) -> Result<()> {
        if let Some(out) = &self.out {
            say!("  wrote {}", picture::write(picture, out, name)?.display());
        }
        Ok(())
    }
}
