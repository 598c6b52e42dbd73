//! Runs a target without libFuzzer: the kept inputs, then mutations of them from a seed. It sees no coverage, so it finds less;
//! an input that leads to nothing new is as good to it as any.
//!
//! `drive TARGET SECONDS`; `STERNA_SEED` repeats a run. The input at hand is written before it is run, so that it is there if the
//! process dies.

use std::path::Path;
use std::time::{Duration, Instant};

use sterna_fuzz::{TARGETS, corpus};

/// Longer inputs are cut.
const LONGEST: usize = 4096;

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().collect();
    let names = || TARGETS.map(|t| t.0).join(", ");
    let usage = || anyhow::anyhow!("expected: drive TARGET SECONDS, where TARGET is one of {}", names());
    let [_, name, seconds] = &arguments[..] else { return Err(usage()) };
    let (name, target) = TARGETS.into_iter().find(|t| t.0 == name).ok_or_else(usage)?;
    let time = Duration::from_secs(seconds.parse().map_err(|_| usage())?);
    let clock = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_micros() as u64 % 1_000_000;
    let seed = std::env::var("STERNA_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(clock);

    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("artifacts").join(name);
    std::fs::create_dir_all(&folder)?;
    let last = folder.join("last");
    let kept: Vec<Vec<u8>> = corpus(name).into_iter().map(|c| c.1).collect();
    println!("{name}: seed {seed}, {} kept inputs; the input at hand is {}", kept.len(), last.display());

    let (begin, mut random) = (Instant::now(), Random::new(seed));
    let (mut runs, mut said) = (0_usize, 0);
    // Every kept input is run, however short the time.
    while runs < kept.len() || begin.elapsed() < time {
        let input = kept.get(runs).cloned().unwrap_or_else(|| random.mutation(&kept));
        std::fs::write(&last, &input)?;
        target(&input);
        runs += 1;
        let minutes = begin.elapsed().as_secs() / 60;
        if minutes > said {
            said = minutes;
            println!("{name}: {runs} runs in {minutes} min");
        }
    }
    std::fs::remove_file(&last)?;
    println!("{name}: {runs} runs in {} s, nothing found", begin.elapsed().as_secs());
    Ok(())
}

/// Marsaglia's xorshift.
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 20) as usize % n
    }

    /// A kept input with a few changes.
    fn mutation(&mut self, kept: &[Vec<u8>]) -> Vec<u8> {
        let mut input = kept[self.below(kept.len())].clone();
        for _ in 0..1 + self.below(6) {
            let at = self.below(input.len() + 1);
            match self.below(6) {
                0 if at < input.len() => input[at] ^= 1 << self.below(8),
                1 if at < input.len() => input[at] = self.below(256) as u8,
                2 if at < input.len() => {
                    let end = (at + 1 + self.below(16)).min(input.len());
                    input.drain(at..end);
                }
                3 => input.insert(at, self.below(256) as u8),
                4 => {
                    let bytes: Vec<u8> = (0..self.below(32)).map(|_| self.below(256) as u8).collect();
                    input.splice(at..at, bytes);
                }
                _ => {
                    // A piece of another input.
                    let other = &kept[self.below(kept.len())];
                    let from = self.below(other.len() + 1);
                    let end = (from + self.below(64)).min(other.len());
                    input.splice(at..at, other[from..end].iter().copied());
                }
            }
        }
        input.truncate(LONGEST);
        input
    }
}
