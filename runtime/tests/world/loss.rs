//! The loss of a device, and forked children.

use sterna::{Error, ForkPolicy};

use super::World;
use crate::common::*;

/// Whether an error tells of a loss.
fn is_loss(e: &Error) -> bool {
    match e {
        Error::Lost { .. } => true,
        Error::Upstream { source, .. } => is_loss(source),
        e => e.to_string().contains("lost"),
    }
}

impl World {
    /// Loses a device, unless it is the last. What only it may have had is lost or right, everything else is right; what is lost
    /// is written anew.
    pub(super) fn lose(&mut self, dev: usize) {
        if self.crowded || self.below.iter().any(|d| d.is_lost()) {
            return;
        }
        self.below[dev].lose();
        // Whoever asks for something learns of it.
        let mut probe = self.rt.shared::<u32>(10).unwrap();
        let met = self.rt.on(&self.rt.devices()[dev]).launch(&add(1), (&mut probe,)).and_then(|p| p.wait());
        assert!(met.as_ref().is_err_and(is_loss), "{met:?}");
        while let Err(e) = self.rt.sync() {
            assert!(is_loss(&e), "{e:?}");
        }
        for of in 0..self.all.len() {
            let both = &mut self.all[of];
            let base = both.x.as_host_ptr().addr();
            let mut at = 0;
            while at < both.v.len() {
                // To the end of the page.
                let end = (at + (4096 - (base + at * 4) % 4096) / 4).min(both.v.len());
                let (r, part) = (at..end, both.x.range(at..end).unwrap());
                match part.try_read() {
                    Ok(x) => super::same(x, &both.v[r.clone()], &r),
                    Err(e) => {
                        assert!(is_loss(&e), "{e:?}");
                        assert!(self.danger.of(dev, &both.at(&r)), "{r:?} of {of} was not the device's alone: {e}");
                        both.x.range_mut(r.clone()).unwrap().fill_with(|i| i as u32).unwrap();
                        both.v[r].iter_mut().enumerate().for_each(|(i, v)| *v = i as u32);
                    }
                }
                at = end;
            }
        }
        self.danger.gone(dev);
    }

    /// Forks; the child looks at what it should find, and drops every handle. The parent's bytes stay as they are.
    pub(super) fn fork(&mut self) {
        // SAFETY: the child loads, stores and leaves by `_exit`: other threads may have held any lock at the fork.
        unsafe {
            let pid = libc::fork();
            assert!(pid >= 0);
            if pid == 0 {
                libc::alarm(20);
                // Unwinding would run what the parent runs after the program.
                let looked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.in_child()));
                libc::_exit(looked.map_or(3, i32::from));
            }
            let mut status = 0;
            assert_eq!(libc::waitpid(pid, &mut status, 0), pid);
            assert_eq!(status, 0, "the child's exit code is {} (signal {})", status >> 8, status & 127);
        }
    }

    /// What a child finds; says whether that is wrong.
    fn in_child(&mut self) -> bool {
        let mut wrong = false;
        for both in &self.all {
            // A page that two allocations share is as the later of the two asked for it.
            let base = both.x.as_host_ptr().addr();
            let skip = ((4096 - base % 4096) % 4096 / 4).min(both.v.len());
            let end = (base + both.v.len() * 4) / 4096 * 4096;
            let whole = skip..(end.saturating_sub(base) / 4).max(skip);
            // SAFETY: the allocation's own elements, which the child has by its policy.
            let found = |i: usize| unsafe { both.x.as_host_ptr().add(i).read_volatile() };
            match both.fork {
                ForkPolicy::Preserve => wrong |= whole.clone().any(|i| found(i) != both.v[i]),
                ForkPolicy::Wipe => wrong |= whole.clone().any(|i| found(i) != 0),
                _ => continue,
            }
            // The child's own: the parent does not see it.
            // SAFETY: as above.
            whole.for_each(|i| unsafe { both.x.as_host_ptr().cast_mut().add(i).write_volatile(77) });
        }
        self.all.clear();
        wrong
    }
}
