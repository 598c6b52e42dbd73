//! Whole programs: what is run, and shown when it fails.

use std::fmt;
use std::io::Write as _;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use super::{Op, World};

/// A policy, two devices by their [numbers](super::open), and what each thread does. As text it is what stands in
/// `regressions.rs`.
#[derive(Clone)]
pub(crate) struct Program {
    pub(crate) policy: &'static str,
    pub(crate) devices: [usize; 2],
    pub(crate) threads: Vec<Vec<Op>>,
}

impl fmt::Debug for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "a program; for `runtime/tests/world/regressions.rs`:")?;
        writeln!(f, "        Program {{")?;
        writeln!(f, "            policy: {:?},", self.policy)?;
        writeln!(f, "            devices: {:?},", self.devices)?;
        writeln!(f, "            threads: vec![")?;
        for ops in &self.threads {
            writeln!(f, "                vec![")?;
            for op in ops {
                writeln!(f, "                    {op:?},")?;
            }
            writeln!(f, "                ],")?;
        }
        writeln!(f, "            ],")?;
        writeln!(f, "        }},")
    }
}

impl Program {
    /// Runs it.
    ///
    /// # Panics
    /// If an allocation does not hold what it must, or a call fails. A program that does not end is shown, and ends the process.
    pub(crate) fn run(&self) {
        const LIMIT: Duration = Duration::from_secs(40);
        let (done, over) = channel::<()>();
        let text = format!("{self:?}");
        // Where the process dies of it there is nobody to show it: then the file stays.
        let name = format!("sterna-program-{}-{:?}.txt", std::process::id(), std::thread::current().id());
        let file = std::env::temp_dir().join(name);
        std::fs::write(&file, &text).unwrap();
        std::thread::spawn(move || {
            if over.recv_timeout(LIMIT) == Err(RecvTimeoutError::Timeout) {
                // Past what catches the output of tests.
                let _ = writeln!(std::io::stderr(), "has not ended after {LIMIT:?}: {text}");
                std::process::abort();
            }
        });
        let ended = std::panic::catch_unwind(|| self.carry_out());
        let _ = std::fs::remove_file(&file);
        drop(done);
        if let Err(e) = ended {
            std::panic::resume_unwind(e);
        }
    }

    fn carry_out(&self) {
        let mut world = World::new(self.policy, self.devices, self.threads.len() > 1);
        let (first, rest) = self.threads.split_first().expect("a thread");
        let go = |world: &mut World, ops: &[Op]| {
            ops.iter().for_each(|op| world.run(op));
            world.check();
        };
        std::thread::scope(|s| {
            for ops in rest {
                let mut own = world.beside();
                s.spawn(move || go(&mut own, ops));
            }
            go(&mut world, first);
        });
    }
}
